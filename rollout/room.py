"""Waiting for room: a quota that is used up, or nodes that are full, hold an episode back before it begins.

That is no fault of the episode's, and not its time: it is asked for again, outside its clock, as long as others of the same
place go on or came to an end a short while ago. That the run waits, and why, is said once, as a warning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from envfarm.errors import NoRoomError
from rollout.episode import has_begun
from rollout.types import Episode

PATIENCE_S = 600.0
"""How long nobody may have had room before the run is given up."""

log = logging.getLogger(__name__)


class Room:
    """Of one place that episodes are played at. Belongs to one event loop."""

    def __init__(self, patience_s: float = PATIENCE_S):
        self._patience_s = patience_s
        self._here: dict[int, Episode] = {}  # by identity: one that was called off may still be leaving as it comes again
        self._none_since: float | None = None
        self._said = False

    @contextmanager
    def holds(self, episode: Episode) -> Iterator[None]:
        """Around an episode, its waiting included."""
        self._here[id(episode)] = episode
        try:
            yield
        finally:
            del self._here[id(episode)]
            if has_begun(episode):
                self._none_since = None

    def is_hopeless(self, error: NoRoomError) -> bool:
        """There was none for one of them: whether that has been so for all of them for too long."""
        if not self._said:
            self._said = True
            log.warning("waiting for room: %s", error)
        if any(has_begun(episode) for episode in self._here.values()):
            self._none_since = None
            return False
        now = asyncio.get_running_loop().time()
        if self._none_since is None:
            self._none_since = now
        return now - self._none_since >= self._patience_s
