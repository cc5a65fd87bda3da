"""The processes behind an engine: seen to be gone before another engine takes their memory.

Held by pidfd, so that a number that the system gave to somebody else is never signalled.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Self


class Family:
    """Processes by pid, and the shared memory that they have."""

    def __init__(self, handles: dict[int, int]):
        self._handles = handles
        self.shared = shared_memory(handles) - shared_memory([os.getpid()])

    @classmethod
    def below(cls, pid: int, *, itself: bool = True) -> Self:
        """Everything that descends from a process now, and the process."""
        pids, handles = [pid], {}
        for parent in pids:
            pids += children(parent)
        for one in pids if itself else pids[1:]:
            try:
                handles[one] = os.pidfd_open(one)
            except ProcessLookupError:
                continue  # it ended meanwhile
        return cls(handles)

    @property
    def pids(self) -> list[int]:
        return list(self._handles)

    async def gone(self, patience_s: float) -> None:
        """Wait until all have ended; those that take longer are killed."""
        waits = [asyncio.create_task(ended(handle)) for handle in self._handles.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=patience_s)
            if late:
                self.kill()
                await asyncio.wait(late)
        self.forget()
        for path in self.shared:
            if path.exists():  # whoever is killed leaves it
                path.unlink(missing_ok=True)
                resource_tracker.unregister(f"/{path.name}", "shared_memory" if path.name.startswith("psm_") else "semaphore")

    def kill(self) -> None:
        """All but those that tidy up what the others leave in shared memory, and then end by themselves."""
        for pid, handle in self._handles.items():
            if tidies_up(pid):
                continue
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def forget(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}


def children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue  # the thread ended
    return found


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Files in /dev/shm that any of them has mapped."""
    found: set[Path] = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        found |= {Path(line.split(maxsplit=5)[5]) for line in lines if " /dev/shm/" in line and not line.endswith("(deleted)")}
    return found


def tidies_up(pid: int) -> bool:
    """Whether a process is multiprocessing's resource tracker."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def ended(handle: int) -> None:
    """When the process behind a pidfd has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, _settle, future)
    try:
        await future
    finally:
        loop.remove_reader(handle)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
