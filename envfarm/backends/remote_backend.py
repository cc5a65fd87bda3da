"""What every backend of remote boxes does alike: boxes kept warm, owned, and freed together."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Protocol

from envfarm.backends.owners import DEADLINE_S, Reaper
from envfarm.backends.remote_box import RemoteBox
from envfarm.backends.remote_streams import Streams
from envfarm.box import BoxSpec, Snapshot
from envfarm.errors import InfraError


class Made(Streams, Protocol):
    """A container or pod that is still to be made."""

    async def create(self) -> None:
        """Once, before anything else. Raises: BoxUnavailableError, InfraError."""
        ...


class RemoteBackend(ABC):
    """See `envfarm.box.Backend`. `warm`: boxes kept ready of every spec that was asked for. `deadline_s`: after this a box is
    removed, whatever it does."""

    name: str
    module: str
    """Has `remove_left_over`, for the reaper."""

    def __init__(self, *, warm: int = 0, deadline_s: float = DEADLINE_S):
        self._warm, self._deadline_s = warm, deadline_s
        self._reaper = Reaper(self.module)
        self._boxes: set[RemoteBox] = set()
        self._ready: dict[BoxSpec, list[asyncio.Task[RemoteBox]]] = defaultdict(list)
        self._count = itertools.count()
        self._prefix = secrets.token_hex(4)
        self._closed = False
        self.left = 0
        """Containers or pods that could not be removed: the reaper's."""

    @abstractmethod
    async def probe(self) -> None: ...

    @abstractmethod
    def _streams(self, spec: BoxSpec, name: str) -> Made:
        """One that is not there yet. Called after `probe`."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """All boxes are stopped. Idempotent."""

    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> RemoteBox:
        await self.probe()
        ready = self._ready[spec]
        box = await (ready.pop(0) if ready else self._make(spec))
        for _ in range(self._warm - len(ready)):
            ready.append(asyncio.create_task(self._make(spec)))
        if snapshot is not None:
            try:
                await box.restore(snapshot)
            except BaseException:
                await box.stop()
                raise
        return box

    async def close(self) -> None:
        self._closed = True
        makers = [task for tasks in self._ready.values() for task in tasks]
        self._ready.clear()
        await asyncio.gather(*makers, return_exceptions=True)
        await asyncio.gather(*(box.stop() for box in list(self._boxes)))
        await self._disconnect()
        self._reaper.end(work_left=self.left > 0)

    def _lifetime(self) -> dict[str, str]:
        return {"lifetime": f"a reaper process, and a deadline after {self._deadline_s:.0f} s"}

    async def _make(self, spec: BoxSpec) -> RemoteBox:
        """A box without an owner yet. Raises: BoxUnavailableError, InfraError."""
        self._reaper.start()
        name = f"box-{self._prefix}-{next(self._count)}"
        streams = self._streams(spec, name)
        box = RemoteBox(name, spec, streams, self._boxes.discard)
        self._boxes.add(box)
        try:
            await streams.create()
            await box.up()
            if self._closed:
                raise InfraError("the backend was closed before the box was up")
        except BaseException:
            await box.stop()
            raise
        return box
