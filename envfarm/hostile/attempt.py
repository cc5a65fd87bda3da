"""The nouns of the panel. An `Attempt` is something that an agent tries; playing it in a `Place` gives what was `Seen`.

What counts as a success of the agent's: it got what it wanted, or its doing was blamed on the farm (an infra error, a fault
of the verifier). An agent that could do that would have its lost episodes played again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from envfarm.box import Backend, Box
from envfarm.hostile.bait import Bait
from envfarm.testing.backend_checks import SMALL

LIMITS = msgspec.structs.replace(SMALL, image="envfarm/python", exec_cpu_s=20.0, exec_timeout_s=60.0)
"""Of an attempt's box: sizes that are reached in a moment, time even for a slow place."""


class Outcome(StrEnum):
    STOPPED = "stopped"
    """And recorded as the agent's doing."""
    NOT_ENFORCED = "not enforced here"
    """The backend says by itself that it does not stop this; whatever was seen, it is not shown as stopped."""
    SUCCEEDED = "SUCCEEDED"


class Seen(msgspec.Struct, frozen=True):
    """What came of one attempt."""

    succeeded: bool
    by: str  # what stopped it, or what it got
    recorded: str  # how the agent's record shows it


@dataclass(frozen=True)
class Place:
    """Where attempts are played."""

    backend: Backend
    bait: Bait
    image: str = LIMITS.image
    """With python3."""

    @asynccontextmanager
    async def box(self, **limits: Any) -> AsyncIterator[Box]:
        """A fresh box with `LIMITS`, some of them otherwise. Raises: BoxUnavailableError, InfraError."""
        box = await self.backend.start(msgspec.structs.replace(LIMITS, image=self.image, **limits), owner="hostile")
        try:
            yield box
        finally:
            await box.stop()


class Attempt(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def tried(self) -> str:
        """What the agent does, for people."""
        ...

    @property
    def guard(self) -> str:
        """The key of `Backend.enforcement` under which a backend may say that it does not stop this. It may say so under the
        attempt's name as well, of that alone."""
        ...

    @property
    def group(self) -> str: ...

    async def play(self, place: Place) -> Seen:
        """Raises: BoxUnavailableError, EpisodeError (counted as a success of the agent's)."""
        ...
