"""What live boxes of every backend share: one shielded stop, data dropped in for one command, the shell's half of a snapshot."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from envfarm.backends import shell_loop
from envfarm.backends.rootfs import STDIN_DIR
from envfarm.box import BoxSpec, ExecResult

SNAPSHOT_BYTES = 64 << 20


class LiveBox(ABC):
    """Base of a `Box`. Its parts are freed by `_stop`, which runs once."""

    def __init__(self, box_id: str, spec: BoxSpec):
        self.id = box_id
        self.spec = spec
        self._stopping: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._stopping)

    @abstractmethod
    async def _stop(self) -> None: ...

    @abstractmethod
    async def _put(self, name: str, data: bytes) -> None:
        """A file of `STDIN_DIR`, for the agent's user alone. Raises: BoxDied."""

    @abstractmethod
    async def _remove(self, name: str) -> None:
        """That file, where the box still is."""

    @abstractmethod
    async def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult: ...

    @asynccontextmanager
    async def _dropped(self, data: bytes) -> AsyncIterator[str]:
        """The path of a file that is there for as long."""
        name = secrets.token_hex(8)
        await self._put(name, data)
        try:
            yield f"{STDIN_DIR}/{name}"
        finally:
            await self._remove(name)

    async def _shell_state(self) -> bytes:
        return shell_loop.restorable((await self.exec(shell_loop.DUMP)).stdout)

    async def _restore_shell(self, state: bytes) -> None:
        """In a box that nobody has used yet."""
        async with self._dropped(state) as path:
            await self.exec(f". {path} >/dev/null 2>&1; __q 0")
