"""`LocalPool`: the pool's interface without a child process or a socket, for tests and for very cheap environments.

A session without a box runs in the caller's event loop; otherwise as in a worker (a thread, a forked process).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envfarm.box import Backend
from envfarm.errors import EnvironmentFault, InfraError, UnknownIdError, did_you_mean
from envfarm.spec import EnvSpec
from envfarm.worker.client import AsyncSession, Wire
from envfarm.worker.protocol import Reply, Request
from envfarm.worker.seats import Seat, Sessions
from envfarm.worker.serving import Worker


class LocalPool:
    """Serves `specs` in this process. As `envfarm.worker.pool.WorkerPool`."""

    def __init__(
        self, specs: Sequence[EnvSpec], *, backend: str | Backend = "bubblewrap", workers: int = 1,
        env_paths: Sequence[str | Path] = (), max_sessions: int = 1024,
    ):  # fmt: skip
        self.specs = {spec.id: spec for spec in specs}
        self._worker = Worker(list(specs), backend=backend, max_sessions=max_sessions)

    async def start(self) -> None:
        """Raises: BoxUnavailableError, SpecError."""
        await self._worker.prepare()

    async def session(self, env_id: str) -> AsyncSession:
        """Raises: UnknownIdError, InfraError where there is no room."""
        if env_id not in self.specs:
            raise UnknownIdError(f"this pool does not serve {env_id!r}{did_you_mean(env_id, self.specs)}")
        sessions = self._worker.sessions
        if sessions is None or sessions.refusal:
            raise InfraError("the pool was not started" if sessions is None else sessions.refusal)
        return AsyncSession(self.specs[env_id], LocalWire(sessions, Seat(sessions)))

    async def close(self) -> None:
        """Idempotent."""
        await self._worker.close()


class LocalWire:
    """A seat, without a connection to it."""

    def __init__(self, sessions: Sessions, seat: Seat):
        self._sessions, self._seat, self._busy = sessions, seat, False

    async def ask(self, request: Request) -> Reply:
        if self._busy:
            raise EnvironmentFault("a session takes one request at a time; this one has not answered the last")
        self._busy = True
        reply = await self._seat.ask(request)
        self._busy = False
        return reply

    async def attach(self, session_id: str) -> Wire:
        seat = self._sessions.claim(session_id)
        if seat is None:
            raise InfraError(f"no session {session_id} waits for a connection")
        return LocalWire(self._sessions, seat)

    def close(self) -> None:
        self._seat.close()
