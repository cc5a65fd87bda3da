"""The engine as its callers see it: awaited, cancelled, updated, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envfarm.errors import CapabilityError, InfraError, UnknownIdError, UserError
from rollout.engines.base import require
from rollout.engines.torch.checkpoint import checksum
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.engine import TorchEngine
from rollout.engines.torch.model import Decoder
from rollout.types import PolicyVersion, SamplingParams

CONFIG = ModelConfig(vocab=64, width=32, layers=2, heads=2, head_dim=16, ffn=64, max_len=512)
A, B = Decoder(CONFIG, seed=1), Decoder(CONFIG, seed=2)


def scene(test: Callable[[TorchEngine], Awaitable[Any]], **options: Any) -> None:
    """Start an engine, run `test` with it, close it."""

    async def play() -> None:
        engine = TorchEngine(options.pop("models", {"learner": A}), **options)
        await engine.start()
        try:
            await asyncio.wait_for(test(engine), timeout=60)
        finally:
            await engine.close()

    asyncio.run(play())


def test_what_our_decoders_promise() -> None:
    async def test(engine: TorchEngine) -> None:
        can = engine.capabilities
        assert can.token_ids and can.logprobs and can.seeds and can.versions and can.batch_invariant
        assert can.context == 512
        require(engine, ("token_ids", "batch_invariant"), what="a test")

    scene(test)


def test_same_seed_same_tokens_and_the_session_never_changes_them() -> None:
    async def test(engine: TorchEngine) -> None:
        async def once(seed: int, session: str = "") -> Any:
            got = await engine.generate([1, 2, 3], SamplingParams(max_tokens=20, seed=seed), policy="learner", session=session)
            return got.token_ids, got.logprobs

        many = await asyncio.gather(*[once(seed, f"s{seed}") for seed in range(30)])
        assert many == [await once(seed) for seed in range(30)]
        assert len({tuple(ids) for ids, _ in many}) == 30

    scene(test, max_in_flight=8)


def test_several_policies_at_once_and_one_added_later() -> None:
    async def test(engine: TorchEngine) -> None:
        ids = [3, 1, 4, 1, 5, 9, 2, 6]
        await engine.add_policy(PolicyVersion(policy="old", number=7), B)
        scores = [await engine.score(ids, policy=p) for p in ("learner", "rival", "old")]
        assert scores[1] == scores[2] != scores[0]
        params = SamplingParams(max_tokens=10, seed=1)
        got = await asyncio.gather(*[engine.generate(ids, params, policy=p) for p in ("learner", "rival", "old")])
        assert got[1].token_ids == got[2].token_ids != got[0].token_ids
        assert [str(g.version) for g in got] == ["learner@0.0", "rival@0.0", "old@0.7"]
        with pytest.raises(ValueError, match="already"):
            await engine.add_policy(PolicyVersion(policy="old"), A)

    scene(test, models={"learner": A, "rival": B})


def test_ten_updates_under_load_labels_exact_no_request_lost() -> None:
    models, labels = {n: (A, B)[n % 2] for n in range(11)}, {}

    async def test(engine: TorchEngine) -> None:
        params = [SamplingParams(max_tokens=150, seed=i) for i in range(12)]
        tasks = [asyncio.create_task(engine.generate([i, 7], p, policy="learner")) for i, p in enumerate(params)]
        for number in range(1, 11):
            version = labels[number] = PolicyVersion(policy="learner", number=number)
            await engine.update_weights(version, models[number].state_dict())
            assert engine.version("learner") == version
            probe = await engine.score([5, 6, 7, 8, 9], policy="learner")
            assert _distance(models[number], [5, 6, 7, 8, 9], probe) < 1e-3
            assert _distance(models[number + 1 if number < 10 else 1], [5, 6, 7, 8, 9], probe) > 0.1
        switched = 0
        for i, got in enumerate(await asyncio.gather(*tasks)):
            assert len(got.token_ids) == 150
            spans = got.versions or [(0, got.version)]
            assert spans[0] == (0, got.version) and [v.number for _, v in spans] == sorted({v.number for _, v in spans})
            switched += len(spans) - 1
            ids = [i, 7, *got.token_ids]
            for (start, version), stop in zip(spans, [s for s, _ in spans[1:]] + [150], strict=True):
                of = _logprobs(models[version.number], ids)[1:]
                assert np.abs(of[start:stop] - got.logprobs[start:stop]).max() < 1e-3
        assert switched > 0

    scene(test)


def _logprobs(model: Decoder, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor(ids), torch.tensor([0, len(ids)]))
    return torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def _distance(model: Decoder, ids: list[int], probe: list[float]) -> float:
    return float(np.abs(_logprobs(model, ids) - probe).max())


def test_a_cancelled_call_frees_its_place() -> None:
    async def test(engine: TorchEngine) -> None:
        long = SamplingParams(max_tokens=500, seed=1)
        stuck = [asyncio.create_task(engine.generate([1], long, policy="learner")) for _ in range(3)]
        await engine.score([1, 2], policy="learner")  # by now the engine has taken them in
        for task in stuck:
            task.cancel()
        got = await engine.generate([2], SamplingParams(max_tokens=2, seed=1), policy="learner")
        assert len(got.token_ids) == 2
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*stuck, return_exceptions=True))

    scene(test, max_in_flight=1)


def test_bad_requests_are_refused_and_harm_nobody() -> None:
    async def test(engine: TorchEngine) -> None:
        ok = SamplingParams(max_tokens=3, seed=1)
        for prompt, params, words in (
            ([1] * 512, ok, "does not fit a context of 512"),
            ([], ok, "0 tokens"),
            ([1, 64], ok, "token id 64 is outside"),
            ([1], SamplingParams(stop_ids=(-1,)), "token id -1"),
            ([1], SamplingParams(max_tokens=0), "max_tokens"),
        ):
            with pytest.raises(ValueError, match=words):
                await engine.generate(prompt, params, policy="learner")
        with pytest.raises(UnknownIdError, match="did you mean 'learner'"):
            await engine.generate([1], ok, policy="lerner")
        before = await engine.score([1, 2, 3], policy="learner")
        with pytest.raises(ValueError, match="missing"):
            await engine.update_weights(PolicyVersion(policy="learner", number=1), {})
        with pytest.raises(ValueError, match=r"the weights have checksum .* but learner@0\.1 is beef"):
            await engine.update_weights(PolicyVersion(policy="learner", number=1, checksum="beef"), B.state_dict())
        assert await engine.score([1, 2, 3], policy="learner") == before
        assert engine.version("learner").number == 0

    scene(test)


def test_closing_ends_what_is_in_flight_and_twice_is_once() -> None:
    async def play() -> None:
        engine = TorchEngine({"learner": A})
        with pytest.raises(InfraError, match="not running"):
            await engine.generate([1], SamplingParams(), policy="learner")
        await engine.start()
        task = asyncio.create_task(engine.generate([1], SamplingParams(max_tokens=500), policy="learner"))
        await engine.score([1, 2], policy="learner")
        await engine.close()
        await engine.close()
        with pytest.raises(InfraError, match="closed"):
            await task

    asyncio.run(play())


def test_an_engine_that_dies_says_so_to_everyone() -> None:
    async def test(engine: TorchEngine) -> None:
        engine._runners["learner"].weights.layers.clear()  # type: ignore[attr-defined]
        engine._runners["learner"].weights.head = torch.zeros(3, 3)  # type: ignore[attr-defined]
        with pytest.raises(InfraError, match="the engine died") as caught:
            await engine.generate([1], SamplingParams(), policy="learner")
        assert isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(InfraError, match="not running"):
            await engine.generate([1], SamplingParams(), policy="learner")

    scene(test)


def test_a_folder_serves_like_the_decoder_it_was_saved_from(tmp_path: Path) -> None:
    A.save(tmp_path)

    async def test(engine: TorchEngine) -> None:
        ids = list(range(20))
        assert await engine.score(ids, policy="folder") == await engine.score(ids, policy="memory")
        assert engine.version("folder").checksum == engine.version("memory").checksum

    scene(test, models={"folder": tmp_path, "memory": A})


def test_impossible_engines_are_refused() -> None:
    with pytest.raises(UserError, match="at least one policy"):
        TorchEngine({})
    other = TorchEngine({"learner": A}, versions={"learner": PolicyVersion(policy="learner", checksum=checksum(B.state_dict()))})
    with pytest.raises(UserError, match="policy 'learner', decoder: the weights have checksum"):
        asyncio.run(other.start())
    with pytest.raises(UserError, match="max_in_flight is 0"):
        TorchEngine({"learner": A}, max_in_flight=0)
    with pytest.raises(CapabilityError, match="lacks images"):
        require(TorchEngine({"learner": A}), ("images",), what="an image environment")
