"""The simulated engine: exact times and labels on a virtual clock, and faults where they were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.errors import InfraError, UnknownIdError
from rollout import virtual_time
from rollout.build import embedded_engine
from rollout.engines.base import NEEDS_FOR_TRAINING, Generation, require
from rollout.engines.simulated.engine import SimulatedEngine
from rollout.engines.simulated.models import Faults, Latency, Lengths
from rollout.run_policies import EngineEntry
from rollout.types import PolicyVersion, SamplingParams

T = TypeVar("T")
PLAIN = Latency(base_s=1.0, request_s=0.0, prefill_s=0.0, update_s=4.0)
"""A second a step, however many are in it."""


def lengths(prompt: Any, params: SamplingParams) -> int:
    """The prompt says how long."""
    return prompt[0]


def simulate(work: Callable[[SimulatedEngine], Awaitable[T]], **more: Any) -> T:
    async def main() -> T:
        said: dict[str, Any] = {"latency": PLAIN, "lengths": lengths} | more
        engine = SimulatedEngine({"learner": None}, **said)
        require(engine, NEEDS_FOR_TRAINING, what="training")
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return virtual_time.run(main())


def ask(engine: SimulatedEngine, length: int, *, seed: int = 0, most: int = 1000, name: str = "") -> Any:
    params = SamplingParams(max_tokens=most, stop_ids=(7,), seed=seed)
    return engine.generate([length], params, policy="learner", name=name)


def now() -> float:
    return asyncio.get_running_loop().time()


async def timed(work: Awaitable[T]) -> tuple[T, float]:
    return await work, now()


def test_replies_end_when_their_tokens_are_sampled_and_share_the_steps() -> None:
    async def work(engine: SimulatedEngine) -> None:
        found = await asyncio.gather(*(timed(ask(engine, n)) for n in (5, 3, 8)))
        assert [len(g.token_ids) for g, _ in found] == [5, 3, 8] and [t for _, t in found] == [5.0, 3.0, 8.0]
        assert all(g.token_ids[-1] == 7 and g.finish == "stop" and len(g.logprobs) == len(g.token_ids) for g, _ in found)
        assert engine.tokens == 16 and engine.steps == 8

    simulate(work)


def test_a_step_takes_longer_the_more_are_in_it_and_prompts_are_read_first() -> None:
    async def work(engine: SimulatedEngine) -> float:
        await asyncio.gather(*(ask(engine, 4, seed=s) for s in range(3)))
        return now()

    assert simulate(work, latency=Latency(base_s=1.0, request_s=0.5, prefill_s=2.0)) == pytest.approx(3 * 2.0 + 4 * 2.5)


def test_more_than_fit_wait_for_their_turn() -> None:
    async def work(engine: SimulatedEngine) -> list[float]:
        return [t for _, t in await asyncio.gather(*(timed(ask(engine, 4, seed=s)) for s in range(5)))]

    assert simulate(work, max_in_flight=2) == [4.0, 4.0, 8.0, 8.0, 12.0]


def test_who_comes_in_the_middle_of_a_step_joins_the_next() -> None:
    async def work(engine: SimulatedEngine) -> list[float]:
        async def late() -> tuple[Generation, float]:
            await asyncio.sleep(2.5)
            return await timed(ask(engine, 2))

        (_, first), (_, second) = await asyncio.gather(timed(ask(engine, 10)), late())
        return [first, second]

    assert simulate(work) == pytest.approx([10.0, 5.0])


def test_the_same_seed_gives_the_same_reply_and_a_cap_cuts_it() -> None:
    async def work(engine: SimulatedEngine) -> None:
        one, again, other = [await ask(engine, 20, seed=s) for s in (1, 1, 2)]
        assert (one.token_ids, one.logprobs) == (again.token_ids, again.logprobs) != (other.token_ids, other.logprobs)
        cut = await ask(engine, 20, seed=1, most=6)
        assert cut.finish == "length" and len(cut.token_ids) == 6 and 7 not in cut.token_ids

    simulate(work)


def test_lengths_are_lognormal_and_at_least_one() -> None:
    drawn = [Lengths(median=100, sigma=0.5)([1], SamplingParams(seed=s)) for s in range(2000)]
    assert 90 < sorted(drawn)[1000] < 110 and min(drawn) >= 1
    assert {Lengths(median=9, sigma=0)([1], SamplingParams(seed=s)) for s in range(5)} == {9}


def test_new_weights_hold_everybody_up_and_label_the_tokens_after_them() -> None:
    v1 = PolicyVersion("learner", 0, 1, "one")

    async def work(engine: SimulatedEngine) -> None:
        before = engine.version("learner")
        request = asyncio.create_task(timed(ask(engine, 10)))
        await asyncio.sleep(2.5)
        await engine.update_weights(v1, None)
        assert now() == pytest.approx(3.0 + 4.0), "after the third step, four seconds"
        (reply, end) = await request
        assert end == pytest.approx(14.0)
        assert reply.version == before and reply.versions == [(0, before), (3, v1)]
        after = await ask(engine, 2)
        assert after.version == v1 == engine.version("learner") and after.versions == []

    simulate(work)


def test_a_refused_update_leaves_the_weights_and_a_slow_one_takes_its_time() -> None:
    v1, v2 = (PolicyVersion("learner", 0, n, str(n)) for n in (1, 2))

    async def work(engine: SimulatedEngine) -> None:
        before = engine.version("learner")
        with pytest.raises(ValueError, match="refused"):
            await engine.update_weights(v1, None)
        assert engine.version("learner") == before
        await engine.update_weights(v2, None)
        assert engine.version("learner") == v2 and now() == pytest.approx(4.0 + 60.0)

    simulate(work, faults=Faults(refused_updates=frozenset({0}), slow_updates={1: 60.0}))


def test_a_death_fails_what_is_in_flight_and_the_rest_waits_for_the_restart() -> None:
    async def work(engine: SimulatedEngine) -> None:
        with pytest.raises(InfraError, match="died"):
            await ask(engine, 10)
        assert now() == 3.5 and engine.in_flight == 0 and engine.deaths == 1
        _, end = await timed(ask(engine, 2))
        assert end == pytest.approx(3.5 + 6.0 + 2.0, abs=1.0), "it is up again, and its steps go on"

    simulate(work, faults=Faults(deaths_s=(3.5,), restart_s=6.0))


def test_one_that_stays_dead_says_so() -> None:
    async def work(engine: SimulatedEngine) -> None:
        for _ in range(2):
            with pytest.raises(InfraError):
                await ask(engine, 10)
        with pytest.raises(InfraError):
            await engine.update_weights(PolicyVersion("learner"), None)

    simulate(work, faults=Faults(deaths_s=(1.0,), restart_s=float("inf")))


def test_a_cancelled_request_makes_room_and_an_aborted_one_gives_what_it_has() -> None:
    async def work(engine: SimulatedEngine) -> None:
        gone, cut = asyncio.create_task(ask(engine, 100)), asyncio.create_task(ask(engine, 50, name="cut"))
        await asyncio.sleep(2.2)
        gone.cancel()
        assert engine.abort(["cut"]) == 1 and engine.abort(["nobody"]) == 0
        reply = await cut
        assert reply.finish == "abort" and len(reply.token_ids) == len(reply.logprobs) == 3 and now() == pytest.approx(3.0)
        assert engine.in_flight == 0 and engine.aborted == 2

    simulate(work, max_in_flight=2)


def test_paused_it_keeps_what_it_has() -> None:
    async def work(engine: SimulatedEngine) -> None:
        request = asyncio.create_task(timed(ask(engine, 4)))
        await asyncio.sleep(1.5)
        await engine.pause()
        await asyncio.sleep(100.0)
        assert not request.done() and engine.abort() == 1
        reply, _ = await request
        assert len(reply.token_ids) == 2 and reply.finish == "abort"

    simulate(work)


def test_an_unknown_policy_and_a_prompt_without_room_are_refused() -> None:
    async def work(engine: SimulatedEngine) -> None:
        with pytest.raises(UnknownIdError, match="learner"):
            await engine.generate([1], SamplingParams(), policy="lerner")
        with pytest.raises(ValueError, match="context of 4"):
            await engine.generate([1] * 4, SamplingParams(), policy="learner")
        await engine.add_policy(PolicyVersion("older", 0, 3), "folder")
        assert (await engine.generate([2], SamplingParams(), policy="older")).version.number == 3

    simulate(work, context=4)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=25), at_once=st.integers(1, 8),
    updates=st.lists(st.floats(0.1, 60.0), max_size=4), deaths=st.lists(st.floats(0.1, 60.0), max_size=2),
    starts=st.lists(st.floats(0.0, 40.0), min_size=25, max_size=25),
)  # fmt: skip
def test_every_request_is_answered_in_full_or_fails_and_versions_never_go_back(
    sizes: list[int], at_once: int, updates: list[float], deaths: list[float], starts: list[float]
) -> None:
    async def work(engine: SimulatedEngine) -> list[Any]:
        async def request(size: int, start: float, seed: int) -> Generation:
            await asyncio.sleep(start)
            return await ask(engine, size, seed=seed)

        async def update(number: int, at: float) -> None:
            await asyncio.sleep(at)
            async with publishing:
                await engine.update_weights(PolicyVersion("learner", 0, number), None)

        publishing = asyncio.Lock()
        changes = [asyncio.create_task(update(n, t)) for n, t in enumerate(sorted(updates), start=1)]
        found = await asyncio.gather(
            *(request(n, t, i) for i, (n, t) in enumerate(zip(sizes, starts, strict=False))), return_exceptions=True
        )
        await asyncio.gather(*changes)
        assert engine.in_flight == 0 and engine.updates == len(updates)
        return found

    found = simulate(work, max_in_flight=at_once, faults=Faults(deaths_s=tuple(deaths), restart_s=3.0))
    for size, reply in zip(sizes, found, strict=True):
        if isinstance(reply, Exception):
            assert isinstance(reply, InfraError) and deaths
            continue
        assert len(reply.token_ids) == size == len(reply.logprobs) and reply.finish == "stop"
        spans = reply.versions or [(0, reply.version)]
        assert spans[0] == (0, reply.version) and all(0 <= at < size for at, _ in spans)
        assert [at for at, _ in spans] == sorted({at for at, _ in spans})
        assert [v.number for _, v in spans] == sorted(v.number for _, v in spans)


def test_a_run_file_names_it_as_any_other() -> None:
    engine = embedded_engine(EngineEntry(kind="simulated", max_in_flight=3, context=64), {})
    assert isinstance(engine, SimulatedEngine) and engine.max_in_flight == 3 and engine.capabilities.context == 64
    assert EngineEntry.model_validate({"kind": "simulated", "threads": 2}).unfitting() == ["threads"]
