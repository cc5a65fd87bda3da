"""Permits: in order, a group at once, and none lost, whoever is cancelled in between."""

from __future__ import annotations

import asyncio

import pytest

from rollout.permits import Permits


def test_a_group_waits_for_all_of_its_permits_and_nobody_overtakes_it() -> None:
    async def body() -> None:
        permits = Permits(3)
        first = await permits.admit(2)
        group, one = asyncio.create_task(permits.admit(3)), asyncio.create_task(permits.admit(1))
        await asyncio.sleep(0)
        assert not group.done() and not one.done(), "one would fit, and comes later"
        first.close()
        (await group).close()
        (await one).close()

    asyncio.run(body())


def test_a_release_right_after_a_cancellation_loses_no_permit() -> None:
    """As when a run halts: waiting groups are cancelled, and running ones end before these have noticed."""

    async def body() -> None:
        permits = Permits(2)
        running = await permits.admit(2)
        waiting = [asyncio.create_task(permits.admit(2)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        running.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        for task in waiting[1:]:
            (await task).close()
        (await permits.admit(2)).close()

    asyncio.run(asyncio.wait_for(body(), 10))


def test_one_that_is_cancelled_as_it_is_let_in_gives_back() -> None:
    async def body() -> None:
        permits = Permits(1)
        running = await permits.admit(1)
        waiting = asyncio.create_task(permits.admit(1))
        await asyncio.sleep(0)
        running.close()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (await permits.admit(1)).close()

    asyncio.run(asyncio.wait_for(body(), 10))
