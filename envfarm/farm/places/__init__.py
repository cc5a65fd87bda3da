"""Where a farm's workers run: one file per place.

A place keeps as many workers per pool as it was told, starts those again that die, and says what there is.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class WorkerInfo(msgspec.Struct, frozen=True):
    name: str
    pool: int
    up: bool
    address: str = ""
    """`HOST:PORT`, where it is up."""
    said: str = ""
    """Why it is not up, where that is known."""


class Place(Protocol):
    async def start(self) -> None:
        """As many workers as the farm's file says. Raises: UserError where they cannot run here, InfraError."""
        ...

    async def scale(self, pool: int, workers: int) -> None:
        """Those that are too many end at once, and their sessions with them. Raises: as `start`."""
        ...

    def workers(self) -> list[WorkerInfo]: ...

    async def close(self) -> None:
        """End all workers. Idempotent."""
        ...
