"""Order, permits, retries, the error budget, and each episode emitted exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from envfarm.errors import InfraError, RunHaltedError, WorkerDied
from envfarm.session import Turn
from rollout.inprocess import LocalAsyncSession
from rollout.permits import Permits
from rollout.plan import GroupRequest, RunPlan
from rollout.policies import EnginePolicy, ScriptedPolicy
from rollout.renderers.compact import CompactRenderer
from rollout.scheduler import Rollouts
from rollout.types import Episode, Group, PolicyVersion, SamplingParams, StopReason
from tests.rollout.scenes import COUNT, NIM, SPECS, CharTokenizer, HashEngine, instance, local_pool, make_session

TOKENIZER = CharTokenizer()
PLAN = RunPlan("run", 7, SPECS, max_in_flight=8)


def engine_policy(name: str = "learner") -> EnginePolicy:
    engine = HashEngine(TOKENIZER, ["add 1", "add 2", "add 3", "take 1", "take 2"])
    return EnginePolicy(PolicyVersion(name, 0, 1, "w1"), engine, CompactRenderer(TOKENIZER))


def requests(count: int = 6, size: int = 4, **more: Any) -> list[GroupRequest]:
    return [
        GroupRequest(
            **({"env": COUNT.id, "instance": instance(COUNT, i), "size": size, "stage": "online", "step": 0, "index": i,
             "seats": {"agent": "learner"}} | more)
        )
        for i in range(count)
    ]  # fmt: skip


class Listing:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []

    def append(self, episode: Episode) -> None:
        assert episode.id not in {e.id for e in self.episodes}, f"{episode.id} came twice"
        self.episodes.append(episode)

    def find(self, slot: Any, instance_hash: str, seats: Any) -> Episode | None:
        return next(
            (e for e in self.episodes if slot_of(e) == slot and e.seats == dict(seats) and e.stop not in
             (StopReason.ABORTED, StopReason.INFRA_ERROR)), None,
        )  # fmt: skip

    def attempts(self, slot: Any) -> int:
        return sum(slot_of(e) == slot for e in self.episodes)


def slot_of(episode: Episode) -> tuple[str, int, int, int]:
    return (episode.stage, episode.step, episode.index, episode.member)


def run(
    asked: list[GroupRequest], *, plan: RunPlan = PLAN, pool: Any = None, sink: Any = None, policies: Any = None
) -> list[Group]:
    async def go() -> list[Group]:
        async with Rollouts(plan, pool or local_pool(), policies or {"learner": engine_policy()}, sink) as rollouts:
            return await rollouts.run(asked)

    return asyncio.run(go())


def tokens(groups: list[Group]) -> list[Any]:
    return [[(e.id, [n.token_ids for n in e.nodes], e.reward) for e in g.episodes] for g in groups]


def test_groups_come_in_dispatch_order_with_members_in_order() -> None:
    groups = run(requests())
    assert [g.id for g in groups] == [r.id for r in requests()]
    assert all([e.member for e in g.episodes] == [0, 1, 2, 3] for g in groups)
    assert all({e.instance_hash for e in g.episodes} == {g.instance_hash} for g in groups)
    assert all(0 < e.timings.queue_s < e.timings.queue_s + e.timings.env_s for g in groups for e in g.episodes)


def test_the_same_run_gives_the_same_trajectories_however_many_are_in_flight() -> None:
    one = run(requests(), plan=RunPlan("run", 7, SPECS, max_in_flight=4))
    many = run(requests(), plan=RunPlan("run", 7, SPECS, max_in_flight=64))
    other = run(requests(), plan=RunPlan("run", 8, SPECS))
    assert tokens(one) == tokens(many) != tokens(other)
    assert len({str(e.nodes) for e in one[0].episodes}) > 1, "members of a group are sampled apart"


class Faulty(LocalAsyncSession):
    """Its first step raises, or waits for an event, as the pool decides."""

    def __init__(self, session: Any, fail: Callable[[], Any]):
        super().__init__(session)
        self.fail = fail

    async def step(self, action: Any) -> Turn:
        await self.fail()
        return await super().step(action)


class FaultyPool:
    """`fail` is called with the running number of the session at each of its steps; open sessions are counted."""

    def __init__(self, fail: Callable[[int], Any]):
        self.fail, self.made, self.open, self.most_open = fail, 0, 0, 0

    async def session(self, env_id: str) -> Faulty:
        number, self.made = self.made, self.made + 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)

        async def fail() -> None:
            result = self.fail(number)
            if result is not None:
                await result

        session = Faulty(make_session(env_id), fail)
        close = session.close

        async def closed() -> None:
            self.open -= 1
            await close()

        session.close = closed  # type: ignore[method-assign]
        return session


def test_permits_bound_the_sessions_and_groups_are_admitted_whole() -> None:
    pool = FaultyPool(lambda number: asyncio.sleep(0))
    run(requests(8, size=3), pool=pool, plan=RunPlan("run", 7, SPECS, max_in_flight=7))
    assert pool.most_open == 7 or pool.most_open == 6
    assert pool.open == 0 and pool.made == 24


def test_a_group_that_can_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_in_flight=8"):
        run(requests(1, size=9))


def test_permits_are_given_back_in_order_and_after_cancellation() -> None:
    async def go() -> None:
        permits = Permits(4)
        first = await permits.admit(3)
        big, small = asyncio.create_task(permits.admit(4)), asyncio.create_task(permits.admit(1))
        await asyncio.sleep(0)
        assert not small.done(), "a small group does not overtake a big one"
        big.cancel()
        lease = await small
        first.close()
        lease.close()
        first.close()
        assert len([(await permits.admit(1)) for _ in range(4)]) == 4

    asyncio.run(go())


def test_infra_errors_are_run_again_up_to_a_cap_and_every_attempt_is_recorded() -> None:
    def dies(number: int) -> None:
        if number < 2:
            raise WorkerDied("killed")

    sink = Listing()
    groups = run(requests(1, size=1), pool=FaultyPool(dies), sink=sink)
    assert [(e.attempt, e.stop) for e in sink.episodes] == [
        (0, StopReason.INFRA_ERROR), (1, StopReason.INFRA_ERROR), (2, sink.episodes[2].stop),
    ]  # fmt: skip
    assert groups[0].episodes[0].ok and groups[0].episodes[0].attempt == 2
    undisturbed = run(requests(1, size=1))[0].episodes[0]
    assert groups[0].episodes[0].nodes == undisturbed.nodes, "an attempt is sampled like the one before"


def test_an_episode_that_always_fails_is_emitted_as_it_is() -> None:
    def dies(number: int) -> None:
        raise InfraError("no machine")

    sink = Listing()
    groups = run(requests(1, size=1), pool=FaultyPool(dies), sink=sink)
    assert groups[0].episodes[0].stop is StopReason.INFRA_ERROR and groups[0].episodes[0].reward == {}
    assert len(sink.episodes) == 1 + PLAN.retries


def test_the_error_budget_halts_the_run_with_the_reason() -> None:
    def dies(number: int) -> None:
        raise InfraError("no machine")

    pool = FaultyPool(dies)
    with pytest.raises(RunHaltedError, match=r"error budget of 25%.*no machine"):
        run(requests(40, size=2), pool=pool)
    assert pool.open == 0 and pool.made < 80


def test_a_bug_is_no_episode_status() -> None:
    def dies(number: int) -> None:
        raise KeyError("a bug of ours")

    pool = FaultyPool(dies)
    with pytest.raises(KeyError):
        run(requests(2), pool=pool)
    assert pool.open == 0


def test_called_off_episodes_are_emitted_as_aborted_and_leave_nothing_open() -> None:
    sink = Listing()

    async def go() -> None:
        hold = asyncio.Event()
        started = asyncio.Event()

        def fail(number: int) -> Any:
            if number < 4:
                return None
            started.set()
            return hold.wait()

        pool = FaultyPool(fail)
        async with Rollouts(PLAN, pool, {"learner": engine_policy()}, sink) as rollouts:
            task = asyncio.create_task(rollouts.run(requests(3)))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pool.open == 0
            pool.fail = lambda number: None
            before = sum(e.ok for e in sink.episodes)
            again = await rollouts.run(requests(3))
            assert [g.id for g in again] == [r.id for r in requests(3)]
            assert rollouts.reused == before == 1

    asyncio.run(go())
    aborted = [e for e in sink.episodes if e.stop is StopReason.ABORTED]
    assert aborted and all(not e.ok for e in aborted)
    finished = {slot_of(e): e.nodes for e in sink.episodes if e.ok}
    assert len(finished) == 12 == sum(e.ok for e in sink.episodes)
    assert finished == {slot_of(e): e.nodes for g in run(requests(3)) for e in g.episodes}


def test_leaving_a_stream_early_calls_off_the_rest_and_gives_the_permits_back() -> None:
    async def go() -> None:
        async with Rollouts(PLAN, local_pool(), {"learner": engine_policy()}) as rollouts:
            stream = rollouts.stream(requests(20))
            first = await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            assert first.id == requests(1)[0].id
            assert len(await rollouts.run(requests(2, size=8))) == 2

    asyncio.run(go())


def test_published_weights_are_named_in_every_later_episode() -> None:
    async def go() -> None:
        async with Rollouts(PLAN, local_pool(), {"learner": engine_policy()}) as rollouts:
            before = (await rollouts.run(requests(1)))[0].episodes[0]
            v2 = PolicyVersion("learner", 0, 2, "w2")
            await rollouts.publish(v2, {})
            after = (await rollouts.run(requests(1, step=1)))[0].episodes[0]
            assert before.seats["agent"].number == 1 and after.seats["agent"] == v2
            assert {n.version for n in after.nodes if n.sampling} == {v2}

    asyncio.run(go())


@pytest.mark.parametrize("seats", [("learner", "learner"), ("learner", "older"), ("learner", "script"), ("script", "learner")])
def test_two_seats_learner_against_itself_an_older_version_and_a_script(seats: tuple[str, str]) -> None:
    shared = HashEngine(TOKENIZER, ["take 1", "take 2"])
    renderer = CompactRenderer(TOKENIZER)
    versions = {"learner": PolicyVersion("learner", 0, 5, "new"), "older": PolicyVersion("older", 0, 2, "old")}
    shared.versions = dict(versions)
    policies: dict[str, Any] = {name: EnginePolicy(v, shared, renderer) for name, v in versions.items()}
    policies["script"] = ScriptedPolicy("script", "random")
    asked = [
        GroupRequest(
            env=NIM.id, instance=instance(NIM, i), size=2, stage="online", step=0, index=i,
            seats=dict(zip(("first", "second"), seats, strict=True)), sampling=SamplingParams(max_tokens=16),
        )
        for i in range(5)
    ]  # fmt: skip
    for episode in (e for g in run(asked, policies=policies) for e in g.episodes):
        assert [v.policy for v in episode.seats.values()] == list(seats)
        assert sorted(episode.reward.values()) == [0.0, 1.0]
        for node in episode.nodes:
            assert node.sampling is None or node.version == episode.seats[node.seat]
        assert {n.seat for n in episode.nodes} <= {s for s, v in episode.seats.items() if v.policy != "script"}
