"""Sessions in this process, awaited: no worker, no wire. For pure and trusted environments, tests and benchmarks.

A session's calls run where they are awaited and block the loop for as long as they take; an environment with a box,
or with slow code, belongs behind `envfarm.worker.pool.WorkerPool`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from envfarm.session import Session, Turn
from envfarm.tools import Action


class LocalAsyncSession:
    """`envfarm.session.Session` with awaitable methods."""

    def __init__(self, session: Session):
        self._session = session

    async def reset(self, instance: Any) -> Turn:
        return self._session.reset(instance)

    async def step(self, action: Action) -> Turn:
        return self._session.step(action)

    async def finish(self, reason: str) -> Turn:
        return self._session.finish(reason)

    async def oracle(self) -> str:
        return self._session.oracle()

    async def random(self, seed: int) -> str:
        return self._session.random(seed)

    async def close(self) -> None:
        self._session.close()


class LocalPool:
    """Makes a session per episode with `make(env_id)`."""

    def __init__(self, make: Callable[[str], Session]):
        self._make = make

    async def session(self, env_id: str) -> LocalAsyncSession:
        return LocalAsyncSession(self._make(env_id))
