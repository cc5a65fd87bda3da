"""The embedded engine's promise: a row's tokens and logprobs are its own, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.engines.base import Generation
from rollout.engines.torch.batching import LaneRunner
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from rollout.engines.torch.probe import batch_invariant
from rollout.engines.torch.request import Request
from rollout.types import PolicyVersion, SamplingParams

DEMO = Decoder(ModelConfig(vocab=512), seed=1)
UNTIED = Decoder(ModelConfig(vocab=130, width=48, heads=4, kv_heads=2, head_dim=16, ffn=80, layers=2, tie=False), seed=2)
V0 = PolicyVersion(policy="learner")


def runner(model: Decoder = DEMO, **options: int) -> LaneRunner:
    arguments = {"lanes": 64, "context": 256} | options
    return LaneRunner(model.config, model.state_dict(), V0, **arguments)


def request(prompt: list[int], session: str = "", **params: object) -> Request:
    return Request(np.array(prompt), SamplingParams(**params), session, None)  # type: ignore[arg-type]


@torch.inference_mode()
def drain(runner: LaneRunner) -> dict[Request, Generation]:
    done = {}
    while runner.busy():
        done.update(runner.step())
    return done


def run(runner: LaneRunner, requests: list[Request]) -> list[Generation]:
    for r in requests:
        runner.submit(r)
    done = drain(runner)
    return [done[r] for r in requests]


def prompts(seed: int, count: int, vocab: int, low: int = 1, high: int = 90) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, size=rng.integers(low, high)).tolist() for _ in range(count)]


def same(a: Generation, b: Generation) -> bool:
    return a.token_ids == b.token_ids and a.logprobs == b.logprobs


@pytest.mark.parametrize("model", [DEMO, UNTIED], ids=["tied", "untied"])
def test_a_row_is_bit_equal_at_batch_1_7_and_64(model: Decoder) -> None:
    row = request([5, 6, 7, 8, 9] * 5, max_tokens=40, seed=3)
    alone = run(runner(model), [row])[0]
    assert len(alone.token_ids) == 40
    for batch in (7, 64):
        others = [request(p, max_tokens=5 + i, seed=i) for i, p in enumerate(prompts(batch, batch - 1, model.config.vocab))]
        place = batch // 2
        got = run(runner(model), [*others[:place], row, *others[place:]])[place]
        assert same(got, alone)


def test_a_row_is_bit_equal_with_a_prefix_cache_hit_and_a_miss() -> None:
    prompt = prompts(0, 1, 512, 80, 81)[0]
    row = request(prompt, max_tokens=30, seed=9)
    miss = run(runner(), [row])[0]
    assert miss.cached_tokens == 0
    warm = runner()
    run(warm, [request(prompt[:50], max_tokens=1, seed=1)])
    hit = run(warm, [row])[0]
    assert hit.cached_tokens == 50 and same(hit, miss)
    again = run(warm, [row])[0]
    assert again.cached_tokens == len(prompt) - 1 and same(again, miss)


@pytest.mark.parametrize("chunk", [1, 3, 16, 31, 128])
def test_a_row_is_bit_equal_however_the_prefill_was_split(chunk: int) -> None:
    row = request(prompts(4, 1, 512, 100, 101)[0], max_tokens=10, seed=2)
    assert same(run(runner(prefill_chunk=chunk), [row])[0], run(runner(prefill_chunk=256), [row])[0])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_is_bit_equal_in_any_company(data: st.DataObject) -> None:
    """Random companions, arrival times, splits, lanes and reuse; the last of four looked-at rows comes late."""
    model = data.draw(st.sampled_from([DEMO, UNTIED]))
    count = data.draw(st.integers(1, 20))
    looked_at = [request(p, max_tokens=12, seed=50 + i, temperature=t, top_p=q)
                 for i, (p, t, q) in enumerate(zip(prompts(7, 4, model.config.vocab, 1, 200), (1.0, 0.7, 1.0, 0.0),
                                                   (1, 1, 0.8, 1), strict=True))]  # fmt: skip
    reference = [run(runner(model, context=400), [r])[0] for r in looked_at]
    busy = runner(
        model,
        context=400,
        lanes=data.draw(st.integers(1, 12)),
        prefill_chunk=data.draw(st.integers(1, 40)),
        prefill_rows=data.draw(st.integers(1, 100)),
    )
    company = prompts(data.draw(st.integers(0, 99)), count, model.config.vocab, 1, data.draw(st.sampled_from([90, 390])))
    if data.draw(st.booleans()):  # some companions share prefixes with the rows
        company += [[*r.prompt[: 1 + len(r.prompt) // 2].tolist(), 1, 2] for r in looked_at]
    arriving = [request(p, max_tokens=1 + i % 9, seed=i, temperature=0.5) for i, p in enumerate(company)] + looked_at
    arriving = data.draw(st.permutations(arriving))
    done: dict[Request, Generation] = {}
    with torch.inference_mode():
        for r in arriving:
            busy.submit(r)
            if data.draw(st.booleans()):
                done.update(busy.step())
    done.update(drain(busy))
    assert len(done) == len(arriving)
    for r, expected in zip(looked_at, reference, strict=True):
        assert same(done[r], expected)


def test_a_row_is_bit_equal_on_one_and_two_threads() -> None:
    row = [request(p, max_tokens=20, seed=i) for i, p in enumerate(prompts(3, 64, 512))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(runner(), row)
        torch.set_num_threads(2)
        two = run(runner(), row)
    finally:
        torch.set_num_threads(before)
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_the_probe_agrees_and_is_not_blind() -> None:
    weights = runner().weights
    assert batch_invariant(DEMO.config, weights)
    # A head that looks at how many rows there are must be found out.
    honest, weights.head = weights.head, _Nosy(weights.head)
    assert not batch_invariant(DEMO.config, weights)
    weights.head = honest


class _Nosy(torch.Tensor):
    """A matrix whose product depends on the number of rows, as a careless library's might."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        plain = [a.as_subclass(torch.Tensor) if isinstance(a, torch.Tensor) else a for a in args]
        out = function(*plain, **(kwargs or {}))
        return out * (1 + 1e-6 * plain[0].shape[0]) if function is torch.mm else out

    def __new__(cls, data: torch.Tensor) -> _Nosy:
        return data.as_subclass(cls)


def test_a_group_computes_its_prompt_once() -> None:
    prompt = prompts(1, 1, 512, 70, 71)[0]
    group = run(runner(), [request(prompt, max_tokens=4, seed=i) for i in range(8)])
    assert sorted(g.cached_tokens for g in group) == [0] + [69] * 7
    assert len({tuple(g.token_ids) for g in group}) > 1


def test_a_conversation_goes_on_where_it_stood_even_among_many() -> None:
    crowded = runner(lanes=4)
    prompt = prompts(2, 1, 512, 40, 41)[0]
    first = run(crowded, [request(prompt, "talk", max_tokens=6, seed=1)])[0]
    run(crowded, [request(p, f"other{i}", max_tokens=3, seed=i) for i, p in enumerate(prompts(5, 3, 512))])
    longer = [*prompt, *first.token_ids, 1, 2, 3]
    second = run(crowded, [request(longer, "talk", max_tokens=6, seed=2)])[0]
    assert second.cached_tokens == 45  # all but the last sampled token, whose keys were never needed
    run(crowded, [request(p, f"evicts{i}", max_tokens=3, seed=i) for i, p in enumerate(prompts(6, 9, 512))])
    evicted = run(crowded, [request(longer, "talk", max_tokens=6, seed=2)])[0]
    assert evicted.cached_tokens == 0 and same(evicted, second)


def test_new_weights_between_steps_label_every_token_and_reach_requests_in_flight() -> None:
    new, v1 = Decoder(DEMO.config, seed=77), PolicyVersion(policy="learner", number=1)
    serving = runner(lanes=2)
    started, waiting = request([3, 1, 4] * 9, max_tokens=20, seed=1), request([1, 5], max_tokens=4, seed=2)
    fresh = [request([2, 7], max_tokens=4, seed=5), waiting]
    with torch.inference_mode():
        for r in (started, *fresh):
            serving.submit(r)
        early = [serving.step() for _ in range(3)]
        serving.update(v1, new.state_dict())
    assert not any(early)
    done = drain(serving)
    got = done[started]
    assert got.version == V0 and got.versions == [(0, V0), (3, v1)]
    assert done[waiting].version == v1 and done[waiting].versions == []
    ids = [*started.prompt.tolist(), *got.token_ids]
    old_scores, new_scores = (_teacher_forced(m, ids)[-20:] for m in (DEMO, new))
    assert np.abs(old_scores[:3] - got.logprobs[:3]).max() < 1e-4
    assert np.abs(new_scores[3:] - got.logprobs[3:]).max() < 1e-4
    assert np.abs(old_scores[3:] - got.logprobs[3:]).max() > 0.1


def _teacher_forced(model: Decoder, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor(ids), torch.tensor([0, len(ids)]))
    return torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize("model", [DEMO, UNTIED], ids=["tied", "untied"])
def test_logprobs_are_those_of_the_training_side_and_of_score(model: Decoder) -> None:
    row = request(prompts(8, 1, model.config.vocab, 30, 31)[0], max_tokens=40, seed=4)
    serving = runner(model)
    got = run(serving, [row])[0]
    ids = [*row.prompt.tolist(), *got.token_ids]
    with torch.inference_mode():
        assert serving.score(ids)[-40:] == got.logprobs
    assert np.abs(_teacher_forced(model, ids)[-40:] - got.logprobs).max() < 1e-5


def test_a_reply_ends_at_a_stop_token_a_limit_or_the_context() -> None:
    free = run(runner(), [request([1, 2, 3], max_tokens=30, seed=1)])[0]
    assert free.finish == "length" and len(free.token_ids) == 30
    stop = free.token_ids[10]
    where = free.token_ids.index(stop) + 1
    stopped = run(runner(), [request([1, 2, 3], max_tokens=30, seed=1, stop_ids=(stop,))])[0]
    assert stopped.finish == "stop" and stopped.token_ids == free.token_ids[:where]
    short = run(runner(context=20), [request([1, 2, 3], max_tokens=30, seed=1)])[0]
    assert short.finish == "length" and short.token_ids == free.token_ids[:17]


def test_cancelled_requests_leave_their_lane_to_others() -> None:
    narrow = runner(lanes=1)
    first, second, third = (request([i, 1], max_tokens=50, seed=i) for i in range(3))
    for r in (first, second, third):
        narrow.submit(r)
    with torch.inference_mode():
        narrow.step()
    narrow.cancel(first)
    narrow.cancel(second)
    done = drain(narrow)
    assert set(done) == {third} and same(done[third], run(runner(), [third])[0])
