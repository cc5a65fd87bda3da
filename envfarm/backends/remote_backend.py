"""What every backend of remote boxes does alike: boxes kept warm, owned, and freed together."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from envfarm.backends.owners import SLACK_S, Reaper
from envfarm.backends.remote_box import RemoteBox
from envfarm.backends.remote_streams import Death, Pipe, Streams
from envfarm.box import BoxSpec, Snapshot
from envfarm.errors import InfraError

PATIENCE_S = 30.0
_OF_LIFETIME = 0.25


def patience_of(spec: BoxSpec, at_most_s: float = PATIENCE_S) -> float:
    """Seconds that a box may wait for room: whoever asked is told why before an episode's own time is over, and may ask again."""
    return min(at_most_s, spec.lifetime_s * _OF_LIFETIME)


class Made(Streams, Protocol):
    """A container or pod that is still to be made."""

    async def create(self) -> None:
        """Once, before anything else. Raises: BoxUnavailableError, InfraError."""
        ...


class Attached(Protocol):
    """The streams of a container or pod that somebody else made, and removes."""

    async def open_main(self) -> Pipe: ...

    async def open_side(self, *, crowded: bool, silent: bool) -> Pipe: ...

    async def death(self) -> Death | None:
        """None where only who made it can tell."""
        ...

    def disconnect(self) -> None:
        """Close them. Idempotent."""
        ...


@dataclass(frozen=True)
class Bare:
    """A container or pod that nobody speaks to yet, still to be made (`made.create()`)."""

    name: str
    made: Made
    until: float
    """Its deadline, unix time."""


class RemoteBackend(ABC):
    """See `envfarm.box.Backend`. `warm`: boxes kept ready of every spec that was asked for. `slack_s`: so long after
    `BoxSpec.lifetime_s` a box is removed, whatever it does. `makes`: False where boxes are somebody else's, who removes them."""

    name: str
    module: str
    """Has `remove_left_over`, for the reaper."""

    def __init__(self, *, warm: int = 0, slack_s: float = SLACK_S, makes: bool = True):
        self._warm, self._slack_s = warm, slack_s
        self._makes, self._reaper = makes, Reaper(self.module) if makes else None
        self._boxes: set[RemoteBox] = set()
        self._until: dict[str, float] = {}  # box -> its deadline
        self._ready: dict[BoxSpec, list[asyncio.Task[RemoteBox]]] = defaultdict(list)
        self._count = itertools.count()
        self._prefix = secrets.token_hex(4)
        self._closed = False
        self.left = 0
        """Containers or pods that could not be removed: the reaper's."""

    @abstractmethod
    def enforcement(self) -> dict[str, str]: ...

    @abstractmethod
    async def probe(self) -> None: ...

    @abstractmethod
    def _streams(self, spec: BoxSpec, name: str) -> Made:
        """One that is not there yet. Called after `probe`."""

    @abstractmethod
    def attached(self, spec: BoxSpec, name: str) -> Attached:
        """The streams of a box that another process made by `bare`. Called after `probe`."""

    @abstractmethod
    async def live(self) -> set[str]:
        """The names of this process's boxes that run. Called after `probe`. Raises: InfraError where nobody tells."""

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Remove a box by its name, whoever made it. Never raises; what cannot be removed now, the reaper removes."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """All boxes are stopped. Idempotent."""

    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> RemoteBox:
        await self.probe()
        ready = self._ready[spec]
        box = await self._take(spec, ready)
        for _ in range(self._warm - len(ready)):
            ready.append(asyncio.create_task(self._make(spec)))
        return await self._begun(box, snapshot)

    async def _begun(self, box: RemoteBox, snapshot: Snapshot | None) -> RemoteBox:
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
        if self._reaper is not None:
            self._reaper.end(work_left=self.left > 0)

    def bare(self, spec: BoxSpec) -> Bare:
        """For who makes boxes that other processes use. What is made is the caller's to remove. Called after `probe`."""
        if self._reaper is not None:
            self._reaper.start()
        name = f"box-{self._prefix}-{next(self._count)}"
        return Bare(name, self._streams(spec, name), time.time() + self._deadline_s(spec))

    def leave(self, box: str) -> None:
        """To the reaper: it could not be removed, as the engine or cluster does not answer just now."""
        self.left += 1
        if self._reaper is not None:
            self._reaper.take(box)

    def _deadline_s(self, spec: BoxSpec) -> float:
        """From when it is made."""
        return spec.lifetime_s + self._slack_s

    async def _take(self, spec: BoxSpec, ready: list[asyncio.Task[RemoteBox]]) -> RemoteBox:
        """The oldest ready box that still has its whole lifetime before it, else a new one. Raises: as `_make`."""
        while ready:
            box = await ready.pop(0)
            if self._until[box.id] >= time.time() + spec.lifetime_s:
                return box
            await box.stop()
        return await self._make(spec)

    def _forget(self, box: RemoteBox) -> None:
        self._boxes.discard(box)
        self._until.pop(box.id, None)

    def _lifetime(self) -> dict[str, str]:
        return {"lifetime": f"a reaper process, and a deadline {self._slack_s:.0f} s after the episode's"}

    async def _make(self, spec: BoxSpec) -> RemoteBox:
        """A box without an owner yet. Raises: BoxUnavailableError, InfraError."""
        return await self._up(spec, self.bare(spec))

    async def _up(self, spec: BoxSpec, bare: Bare) -> RemoteBox:
        """Raises: BoxUnavailableError, InfraError."""
        box = RemoteBox(bare.name, spec, bare.made, self._forget)
        self._boxes.add(box)
        self._until[bare.name] = bare.until
        try:
            await bare.made.create()
            await box.up()
            if self._closed:
                raise InfraError("the backend was closed before the box was up")
        except BaseException:
            await box.stop()
            raise
        return box
