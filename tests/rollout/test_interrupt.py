"""Ctrl-C while something runs: it is told once, closes in its own time, and the exception comes when it is closed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from rollout import interrupt


def test_what_is_called_off_closes_undisturbed_however_often_the_keys_are_pressed() -> None:
    closed = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            for step in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.001)
                closed.append(step)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt.run(work())
    assert closed == [0, 1, 2] and signal.getsignal(signal.SIGINT) is before


def test_results_and_errors_pass_through_also_in_another_thread() -> None:
    async def give(value: int) -> int:
        if value < 0:
            raise ValueError(value)
        return value

    assert interrupt.run(give(3)) == 3
    with pytest.raises(ValueError, match="-1"):
        interrupt.run(give(-1))
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(interrupt.run(give(4))))
    thread.start()
    thread.join()
    assert got == [4]


def test_a_cancellation_of_its_own_is_no_interrupt() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        interrupt.run(cancelled())
