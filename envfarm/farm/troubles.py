"""Kinds of box that could not be made: why, and when each is tried again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from envfarm.box import BoxSpec
from envfarm.errors import EnvfarmError, NoRoomError, UserError

_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 30.0


@dataclass(frozen=True)
class Trouble:
    error: EnvfarmError
    tries: int
    until: float
    """When it is tried again, on the loop's clock."""


class Troubles:
    def __init__(self) -> None:
        self._of: dict[BoxSpec, Trouble] = {}

    def begin(self, spec: BoxSpec, error: EnvfarmError) -> float:
        """It failed (again); returns the seconds until it is tried again, longer each time."""
        tries = self._of[spec].tries + 1 if spec in self._of else 0
        pause_s = min(_AGAIN_AT_MOST_S, _AGAIN_S * 2**tries)
        self._of[spec] = Trouble(error, tries, asyncio.get_running_loop().time() + pause_s)
        return pause_s

    def end(self, spec: BoxSpec) -> None:
        self._of.pop(spec, None)

    def pauses(self, spec: BoxSpec, *, asked: bool) -> bool:
        """Whether it is too early to try again. Who asks for what a person must mend is told at once, so that is tried."""
        trouble = self._of.get(spec)
        if trouble is None or (asked and is_final(trouble.error)):
            return False
        return asyncio.get_running_loop().time() < trouble.until

    def said(self) -> list[str]:
        return [str(trouble.error) for trouble in self._of.values()]


def is_final(error: EnvfarmError) -> bool:
    """Whether a person must mend it; the rest may pass."""
    return isinstance(error, UserError) and not isinstance(error, NoRoomError)
