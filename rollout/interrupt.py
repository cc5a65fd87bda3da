"""Ctrl-C: what runs is called off and closes what it opened, however often the keys are pressed meanwhile."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run(work)`, with one difference: a second SIGINT does not break into the closing that the first began.
    Otherwise an impatient person leaves workers' directories behind. Whoever cannot wait has `kill -9`, after which
    nothing finished is lost either.

    Raises: KeyboardInterrupt after SIGINT, once everything is closed; what `work` raises.
    """
    called_off = False

    async def guarded() -> T:
        task = asyncio.ensure_future(work)

        def call_off() -> None:
            nonlocal called_off
            if not called_off:
                called_off = True
                task.cancel()

        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, call_off)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if called_off:
            raise KeyboardInterrupt from None
        raise
