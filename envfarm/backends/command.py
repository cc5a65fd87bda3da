"""What a shell keeps of the command under way: its output and what it may still use."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from envfarm.backends.limits import Counts
from envfarm.box import LimitKind

_CHUNK = 1 << 16


class Stream:
    """One output pipe: keeps the first bytes of each command, reads and drops the rest."""

    def __init__(self, fd: int, keep: int):
        self.fd = fd
        self.seen = 0
        self._keep = keep
        self._chunks: list[bytes] = []

    def read_ready(self) -> None:
        """Take what is there, once."""
        with suppress(BlockingIOError):
            chunk = os.read(self.fd, _CHUNK)
            if self.seen < self._keep:
                self._chunks.append(chunk[: self._keep - self.seen])
            self.seen += len(chunk)

    def take(self) -> tuple[bytes, bool]:
        """What was kept since the last time and whether something was dropped. Nobody may still be writing."""
        before = -1
        while self.seen != before:
            before = self.seen
            self.read_ready()
        kept, cut = b"".join(self._chunks), self.seen > self._keep
        self._chunks, self.seen = [], 0
        return kept, cut


@dataclass
class Running:
    """The command under way."""

    deadline: float  # loop time
    cpu_until: float  # CPU seconds of the box
    before: Counts
    limit: LimitKind | None = None  # why it was ended from outside
    ended_at: float = 0.0  # loop time of the last attempt to end it
    attempts: int = 0
