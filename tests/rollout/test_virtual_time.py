"""A clock that jumps: hours in no time, in an order that never changes."""

from __future__ import annotations

import asyncio
import time

import pytest

from rollout import virtual_time


def test_sleepers_wake_in_the_order_of_their_times_and_the_clock_is_exact() -> None:
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(sleeper("day", 86400.0), sleeper("second", 1.0), sleeper("hour", 3600.0))

    began = time.monotonic()
    virtual_time.run(main())
    assert woken == [("second", 1.0), ("hour", 3600.0), ("day", 86400.0)]
    assert time.monotonic() - began < 3600


def test_timeouts_are_on_the_same_clock() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000.0):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(main()) == 1000.0


def test_what_is_for_a_thread_is_done_on_the_spot() -> None:
    async def main() -> tuple[int, float]:
        timer = asyncio.get_running_loop().call_later(5.0, lambda: None)
        value = await asyncio.to_thread(lambda: 7)
        timer.cancel()
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return value, asyncio.get_running_loop().time()

    assert virtual_time.run(main()) == (7, 0.0)
