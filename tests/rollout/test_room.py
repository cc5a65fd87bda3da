"""A quota or full nodes hold an episode back: waited for outside its clock, said once, and never a reward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from envfarm.errors import NoRoomError
from envfarm.session import Turn
from envfarm.tools import Action
from rollout.episode import Terms
from rollout.hosts import Here
from rollout.inprocess import LocalAsyncSession
from rollout.plan import GroupRequest
from rollout.policies import ScriptedPolicy
from rollout.room import Room
from rollout.scheduler import blank_episode
from rollout.types import Episode, SamplingParams, StopReason
from tests.rollout.scenes import COUNT, instance, make_session

FULL = NoRoomError("exceeded quota: boxes, used: pods=2, limited: pods=2")
ORACLE = {"agent": ScriptedPolicy("expert", "oracle")}


class Full(LocalAsyncSession):
    """Has no room as long as its pool says so, be it at the start or for the second step."""

    def __init__(self, pool: Cramped):
        super().__init__(make_session(COUNT.id))
        self._pool, self._steps = pool, 0

    async def reset(self, instance: Any) -> Turn:
        await self._pool.opens()
        return await super().reset(instance)

    async def step(self, action: Action) -> Turn:
        self._steps += 1
        if self._steps == 2:
            await self._pool.verifies()
        return await super().step(action)

    async def close(self) -> None:
        await super().close()
        self._pool.open -= 1


async def room() -> None:
    pass


async def no_room() -> None:
    raise FULL


class Cramped:
    """A pool whose sessions call `opens` at their start, `verifies` in the middle; open sessions are counted."""

    def __init__(self, opens: Callable[[], Any] = room, verifies: Callable[[], Any] = room):
        self.opens, self.verifies, self.open = opens, verifies, 0

    async def session(self, env_id: str) -> Full:
        self.open += 1
        return Full(self)


def blank(index: int = 0) -> Episode:
    seats = {"agent": "expert"}
    request = GroupRequest(env=COUNT.id, instance=instance(COUNT), size=1, stage="s", step=0, index=index, seats=seats)
    return blank_episode("run", request, 0, 0, {role: policy.version for role, policy in ORACLE.items()})


async def play(here: Here, episode: Episode, timeout_s: float = 20.0) -> Episode:
    terms = Terms(run_seed=0, seed_key=(), sampling=SamplingParams(), timeout_s=timeout_s)
    return await here.play(episode, instance(COUNT), ORACLE, terms)


def test_it_is_waited_for_outside_the_episodes_clock_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    timeout_s, begun = 2.0, 0.0

    async def main() -> Episode:
        nonlocal begun
        loop, asked = asyncio.get_running_loop(), 0

        async def opens() -> None:
            nonlocal asked, begun
            asked += 1
            await asyncio.sleep(timeout_s / 4)  # the patience of a worker, which is the less of the two
            begun = loop.time() - started
            if asked <= 4:
                raise FULL

        pool, started = Cramped(opens), loop.time()
        episode = await play(Here(pool), blank(), timeout_s)
        assert pool.open == 0
        return episode

    episode = asyncio.run(main())
    assert episode.stop is StopReason.TERMINATED and episode.reward == {"agent": 1.0} and begun > timeout_s
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("waiting for room: exceeded quota: boxes")


def test_where_nobody_has_had_any_for_too_long_the_run_is_given_up_and_says_why() -> None:
    episode, pool = blank(), Cramped(no_room)
    with pytest.raises(NoRoomError, match="exceeded quota: boxes"):
        asyncio.run(play(Here(pool, Room(patience_s=0.0)), episode))
    assert episode.stop is StopReason.INFRA_ERROR and "exceeded quota: boxes" in episode.error
    assert (episode.reward, pool.open) == ({}, 0)


def test_while_others_play_it_is_worth_waiting() -> None:
    async def main() -> list[Episode]:
        first_plays, second_done, tries = asyncio.Event(), asyncio.Event(), 0

        async def opens() -> None:
            nonlocal tries
            tries += first_plays.is_set()
            if 1 <= tries <= 5:
                raise FULL

        async def verifies() -> None:
            if not first_plays.is_set():
                first_plays.set()
                await second_done.wait()

        here = Here(Cramped(opens, verifies), Room(patience_s=0.0))
        first = asyncio.ensure_future(play(here, blank(0)))
        await first_plays.wait()
        second = await play(here, blank(1))
        second_done.set()
        return [await first, second]

    assert [episode.stop for episode in asyncio.run(main())] == [StopReason.TERMINATED] * 2


def test_none_in_the_middle_is_the_machines_fault() -> None:
    episode = asyncio.run(play(Here(Cramped(verifies=no_room)), blank()))
    assert episode.stop is StopReason.INFRA_ERROR and "exceeded quota: boxes" in episode.error
    assert episode.reward == {} and len(episode.steps) == 1


def test_one_that_was_called_off_may_leave_after_it_came_again() -> None:
    room, first, again = Room(), blank(), blank()
    assert first.id == again.id
    with room.holds(again), room.holds(first):
        pass
