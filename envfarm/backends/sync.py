"""The box as a synchronous environment sees it.

Boxes live on the event loop that started them; environments run in worker threads. `SyncBox` hands each call over to that
loop and waits for the answer. It must not be used on the loop's own thread, where waiting would wait for itself.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Coroutine
from typing import Any, TypeVar

from envfarm.box import WORKDIR, Box, BoxSpec, Entry, ExecResult, Snapshot

T = TypeVar("T")


class SyncBox:
    """`Box` with blocking methods; each raises what the coroutine of that name raises."""

    def __init__(self, box: Box, loop: asyncio.AbstractEventLoop):
        self.box = box
        self.loop = loop

    @property
    def spec(self) -> BoxSpec:
        return self.box.spec

    def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        return self._wait(self.box.exec(command, stdin=stdin, timeout_s=timeout_s))

    def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        return self._wait(self.box.read(path, max_bytes=max_bytes))

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        return self._wait(self.box.write(path, data, mode=mode))

    def list(self, path: str = WORKDIR, *, max_entries: int = 10_000) -> builtins.list[Entry]:
        return self._wait(self.box.list(path, max_entries=max_entries))

    def archive(self, paths: builtins.list[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]:
        return self._wait(self.box.archive(paths, max_bytes=max_bytes))

    def snapshot(self) -> Snapshot:
        return self._wait(self.box.snapshot())

    def stop(self) -> None:
        return self._wait(self.box.stop())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result()
