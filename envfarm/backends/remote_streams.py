"""What a box that is reached over byte streams is made of: the few things that Docker and Kubernetes do differently.

`Streams` is one container or pod: it opens the standard streams of its process 1 (once) and those of a second shell beside it
(again where the agent has killed it), knows why it died, and removes it. All else - the shell, limits, files, snapshots - is
the same everywhere: `remote_shell`, `remote_pair`, `remote_side`, `remote_files`, `remote_box`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from envfarm.box import LimitKind


class Lost(Exception):
    """The container or pod is not there any more, or cannot be reached; `Streams.death` says why."""


class NoRoom(Exception):
    """The container or pod runs, and no second process could be started in it."""


@dataclass(frozen=True)
class Death:
    """Why a box is gone."""

    why: str
    by_agent: bool = False
    """Its own doing, then: every later command ends by `limit`, or with `exit_code`. Otherwise BoxDied."""
    limit: LimitKind | None = None
    exit_code: int = 137


class Pipe(Protocol):
    """The streams of one process in the box. Calls back on the event loop; nothing is called after `close`."""

    def listen(self, out: Callable[[bytes], None], err: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        """Give what comes to `out` and `err` as it comes; `ended` once, where the other end closes."""
        ...

    def send(self, data: bytes) -> None:
        """To the process's standard input, in the background: who reads there may have been stopped by the agent. A stream
        that has ended takes everything and forgets it."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Streams(Protocol):
    """One container or pod."""

    async def open_main(self) -> Pipe:
        """The standard streams of `remote_loop.entry()`, which is process 1 or runs beside it: then the agent can kill it, which
        ends its box. What it says first may be lost. Called once. Raises: Lost."""
        ...

    async def open_side(self, *, crowded: bool, silent: bool) -> Pipe:
        """Start `remote_side.ENTRY` beside it. `crowded`: the last one did not come up, perhaps because the agent has used all
        processes: make room where there is a way. `silent`: the last one had stopped to answer. Raises: Lost, NoRoom."""
        ...

    async def death(self) -> Death:
        """Asked once, after a stream ended that should not have."""
        ...

    async def remove(self) -> None:
        """End and remove it. Idempotent, never raises."""
        ...
