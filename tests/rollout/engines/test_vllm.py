"""A real vLLM, in this process and served, for models with and without a tied head: what is sampled, labelled and pushed."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np
import pytest

from envfarm.errors import CapabilityError, UserError
from rollout.engines.base import NEEDS_FOR_TRAINING, Adapter, Generation, Probe, require
from rollout.engines.torch.engine import TorchEngine
from rollout.engines.vllm.engine import VLLMEngine
from rollout.types import PolicyVersion, SamplingParams
from tests.rollout.engines.vllm_scene import (
    KINDS,
    MODELS,
    PROBE,
    PROMPT,
    VOCAB,
    apart,
    folders,
    forward,
    teacher,
    version_of,
)  # fmt: skip

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


class Live:
    """One engine for all tests of a kind, and the loop that it lives in. Weights alternate; `number` counts them."""

    def __init__(self, engine: VLLMEngine, served: bool):
        self.engine, self.served = engine, served
        self.runner = asyncio.Runner()
        self.number = {kind: 0 for kind in KINDS}

    def run(self, test: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(test)

    def model(self, kind: str) -> Any:
        return MODELS[kind, self.number[kind] % 2]

    def other(self, kind: str) -> Any:
        return MODELS[kind, 1 - self.number[kind] % 2]

    async def push(self, kind: str) -> PolicyVersion:
        version = version_of(kind, self.number[kind] + 1)
        model = self.other(kind)
        await self.engine.update_weights(version, model.state_dict(), probe=Probe(PROBE, teacher(model, PROBE).tolist()))
        self.number[kind] += 1
        return version

    async def ask(self, kind: str, prompt: list[int] = PROMPT, **params: Any) -> Generation:
        return await self.engine.generate(prompt, SamplingParams(**params), policy=kind)


@pytest.fixture(scope="module", params=["in process", "served"])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    served = request.param == "served"
    engine = VLLMEngine(folders(tmp_path_factory.mktemp("models")), serve=served, max_in_flight=32, threads=1)
    live = Live(engine, served)
    with live.runner:
        live.run(engine.start())
        handles = [os.pidfd_open(pid) for kind in KINDS for pid in engine.pids(kind)]
        yield live
        live.run(engine.close())
    for handle in handles:
        assert is_over(handle), "a process is left"
        os.close(handle)


def test_what_it_promises(live: Live) -> None:
    can = live.engine.capabilities
    require(live.engine, NEEDS_FOR_TRAINING, what="a test")
    assert can.probes and not can.batch_invariant and can.context == 1024
    assert live.engine.version("tied") == version_of("tied", live.number["tied"])


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_of_what_was_sampled_from(live: Live, kind: str) -> None:
    async def test() -> None:
        for temperature in (1.0, 0.6):
            reply = await live.ask(kind, max_tokens=60, temperature=temperature, seed=3)
            right = teacher(live.model(kind), PROMPT + reply.token_ids, temperature)[len(PROMPT) - 1 :]
            assert apart(reply.logprobs, right) < 1e-3
        reply = await live.ask(kind, max_tokens=60, top_p=0.5, seed=3)
        rows = forward(live.model(kind), PROMPT + reply.token_ids)[len(PROMPT) - 1 :]
        assert apart(reply.logprobs, [nucleus(row, 0.5)[i] for row, i in zip(rows, reply.token_ids, strict=True)]) < 1e-3
        greedy = await live.ask(kind, max_tokens=20, temperature=0.0)
        rows = forward(live.model(kind), PROMPT + greedy.token_ids)[len(PROMPT) - 1 :]
        assert greedy.token_ids == rows.argmax(axis=1).tolist() and set(greedy.logprobs) == {0.0}

    live.run(test())


def nucleus(row: np.ndarray, top_p: float) -> np.ndarray:
    """Logprobs of the smallest set whose mass reaches `top_p`, renormalised."""
    order = np.argsort(-row)
    kept = order[: int(np.searchsorted(np.cumsum(np.exp(row[order])), top_p)) + 1]
    out = np.full_like(row, -np.inf)
    out[kept] = row[kept] - np.log(np.exp(row[kept]).sum())
    return out


def test_seeds_and_stop_ids(live: Live) -> None:
    async def test() -> None:
        first, again, other = await asyncio.gather(*[live.ask("tied", max_tokens=24, seed=s) for s in (2**62, 2**62, 5)])
        assert first.token_ids == again.token_ids != other.token_ids and first.finish == "length"
        at = next(i for i, token in enumerate(first.token_ids) if i > 3 and token not in first.token_ids[:i])
        stopped = await live.ask("tied", max_tokens=24, seed=2**62, stop_ids=(first.token_ids[at],))
        assert stopped.token_ids == first.token_ids[: at + 1] and stopped.finish == "stop"

    live.run(test())


def test_what_does_not_fit_is_refused_and_the_rest_is_cut(live: Live) -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="a prompt of 1024 tokens does not fit a context of 1024"):
            await live.ask("tied", [1] * 1024)
        with pytest.raises(ValueError, match=f"token id {VOCAB} is outside"):
            await live.ask("tied", [1, VOCAB])
        with pytest.raises(ValueError, match="max_tokens"):
            await live.ask("tied", max_tokens=0)
        cut = await live.ask("tied", [1] * 1020, max_tokens=50)
        assert (len(cut.token_ids), cut.finish) == (4, "length")

    live.run(test())


@pytest.mark.parametrize("kind", KINDS)
def test_ten_updates_under_load(live: Live, kind: str) -> None:
    """Independent weights in turns. A probe after each, a reply that is under way through several, and every label."""

    async def test() -> None:
        first = live.number[kind]
        load: list[asyncio.Task[Generation]] = []
        for update in range(10):
            load += [asyncio.create_task(live.ask(kind, max_tokens=240, seed=100 * update + i)) for i in range(2)]
            await live.ask(kind, max_tokens=16, seed=update)  # meanwhile the others go on
            version = await live.push(kind)
            assert live.engine.version(kind) == version
            scores = await live.engine.score(PROBE, policy=kind)
            assert apart(scores, teacher(live.model(kind), PROBE)) < 1e-3
            assert apart(scores, teacher(live.other(kind), PROBE)) > 0.1
        replies = await asyncio.gather(*load)
        assert len(replies) == 20 and all(len(r.token_ids) == 240 for r in replies), "no request is lost"
        assert sum(len(r.versions) > 1 for r in replies) >= 10, "weights changed under replies"
        for reply in replies:
            check_labels(reply, kind, first)

    live.run(test())


def check_labels(reply: Generation, kind: str, first: int) -> None:
    """Each token's logprob is that of the weights that it is labelled with, and not of the others."""
    spans = reply.versions or [(0, reply.version)]
    assert spans[0] == (0, reply.version) and all(v == version_of(kind, v.number) for _, v in spans)
    numbers = [v.number for _, v in spans]
    assert numbers == sorted(set(numbers)) and first <= numbers[0]
    whole = PROMPT + reply.token_ids
    by = {parity: teacher(MODELS[kind, parity], whole)[len(PROMPT) - 1 :] for parity in (0, 1)}
    ends = [start for start, _ in spans[1:]] + [len(reply.token_ids)]
    for (start, version), end in zip(spans, ends, strict=True):
        found = reply.logprobs[start:end]
        assert apart(found, by[version.number % 2][start:end]) < 1e-3
        if end - start > 5:
            assert apart(found, by[1 - version.number % 2][start:end]) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_refused_weights_leave_the_old_ones_serving(live: Live, kind: str) -> None:
    async def test() -> None:
        before = live.engine.version(kind)
        good = live.other(kind).state_dict()
        version = PolicyVersion(kind, 0, 999, version_of(kind, live.number[kind] + 1).checksum)
        missing = {k: v for k, v in good.items() if "layers.0.mlp.up" not in k}
        wrong = good | {"model.norm.weight": good["model.norm.weight"][:3]}
        other = PolicyVersion(kind, 0, 999, "beef")
        answer = Probe(PROBE, teacher(live.model(kind), PROBE).tolist())  # of the weights before
        for state, named, probe, words in (
            (missing, version, None, r"missing: model\.layers\.0\.mlp\.up_proj"),
            (good | {"surplus": good["model.norm.weight"]}, version, None, "unknown: surplus"),
            (wrong, version, None, r"model\.norm\.weight is \(3,\), not \(64,\)"),
            (good, other, None, "the weights that arrived have checksum"),
            (good, version, answer, "the probe's logprobs are off by"),
        ):
            with pytest.raises(ValueError, match=words):
                await live.engine.update_weights(named, state, probe=probe)
            assert live.engine.version(kind) == before
            assert apart(await live.engine.score(PROBE, policy=kind), teacher(live.model(kind), PROBE)) < 1e-3
            reply = await live.ask(kind, max_tokens=4)
            assert reply.version == before
        with pytest.raises(CapabilityError, match="adapter"):
            await live.engine.update_weights(version, Adapter({}, {}))

    live.run(test())


def test_the_prefix_cache_is_of_one_version(live: Live) -> None:
    async def test() -> None:
        reply = await live.ask("tied", max_tokens=20)
        longer = PROMPT + reply.token_ids
        assert (await live.ask("tied", longer, max_tokens=4)).cached_tokens > 0
        await live.push("tied")
        after = await live.ask("tied", longer, max_tokens=30)
        assert after.cached_tokens == 0
        assert apart(after.logprobs, teacher(live.model("tied"), longer + after.token_ids)[len(longer) - 1 :]) < 1e-3

    live.run(test())


def test_calling_off_aborts_the_request(live: Live) -> None:
    if live.served:
        pytest.skip("a server does not say what it computes; it aborts by itself where a connection is closed")

    async def test() -> None:
        task = asyncio.create_task(live.ask("tied", max_tokens=800))
        await live.ask("tied", max_tokens=8)
        inside = live.engine._policies["tied"].replica._llm
        assert inside.get_num_unfinished_requests() == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inside.get_num_unfinished_requests() == 0

    live.run(test())


def test_the_embedded_engine_says_the_same_of_the_same_weights(live: Live) -> None:
    """What both promise: ids, logprobs, lengths, labels; not the same draws, which are each engine's own."""

    async def test() -> None:
        embedded = TorchEngine({"tied": live.model("tied")})
        await embedded.start()
        try:
            assert apart(await embedded.score(PROBE, policy="tied"), await live.engine.score(PROBE, policy="tied")) < 1e-3
            for params in (SamplingParams(max_tokens=12, temperature=0.0), SamplingParams(max_tokens=12, seed=4)):
                ours = await live.engine.generate(PROMPT, params, policy="tied")
                theirs = await embedded.generate(PROMPT, params, policy="tied")
                assert len(ours.token_ids) == len(ours.logprobs) == 12 and ours.finish == theirs.finish == "length"
                assert ours.versions == theirs.versions == []
            assert ours.version.checksum == theirs.version.checksum
        finally:
            await embedded.close()

    live.run(test())


def test_a_policy_that_is_not_there_or_twice(live: Live) -> None:
    async def test() -> None:
        with pytest.raises(UserError, match="no policy 'tide' in the engine"):
            await live.engine.generate([1], SamplingParams(), policy="tide")
        with pytest.raises(ValueError, match="already"):
            await live.engine.add_policy(PolicyVersion("tied"), "nowhere")

    live.run(test())


def is_over(handle: int) -> bool:
    return bool(select.select([handle], [], [], 0)[0])
