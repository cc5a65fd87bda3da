"""`WorkerPool`: workers as child processes, and sessions in them for a rollout.

    pool = WorkerPool([spec], workers=2)
    await pool.start()
    session = await pool.session("games/maze-v0")
    turn = await session.reset(instance)
    ...
    await session.close()
    await pool.close()

A worker that dies takes its sessions with it (`WorkerDied`) and is replaced. Workers die with this process, even after
`kill -9`. More sessions than there is room for wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from envfarm.errors import InfraError, UnknownIdError, did_you_mean
from envfarm.spec import EnvSpec
from envfarm.worker.child import WorkerProcess
from envfarm.worker.client import AsyncSession, Channel
from envfarm.worker.lifetime import PrivateDir


class WorkerPool:
    """Starts `workers` child processes that serve `specs`."""

    def __init__(
        self, specs: Sequence[EnvSpec], *, backend: str = "bubblewrap", workers: int = 1,
        env_paths: Sequence[str | Path] = (), max_sessions: int = 256,
    ):  # fmt: skip
        self.specs = {spec.id: spec for spec in specs}
        self._backend, self._env_paths = backend, [str(p) for p in env_paths]
        self._max_sessions, self._count = max_sessions, workers
        self._permits = asyncio.Semaphore(workers * max_sessions)
        self._workers: list[WorkerProcess] = []
        self._dir: PrivateDir | None = None

    async def start(self) -> None:
        """Raises: UserError (a spec that cannot be served here, no boxes), InfraError."""
        self._dir = PrivateDir()
        self._workers = [
            WorkerProcess(number, list(self.specs.values()), self._dir.path, self._backend, self._max_sessions)
            for number in range(self._count)
        ]  # fmt: skip
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.close()
            raise

    async def session(self, env_id: str) -> AsyncSession:
        """A session in the least busy worker; waits where all are full. Raises: UnknownIdError, InfraError."""
        if env_id not in self.specs:
            raise UnknownIdError(f"this pool does not serve {env_id!r}{did_you_mean(env_id, self.specs)}")
        await self._permits.acquire()
        try:
            worker, channel = await self._channel()
        except BaseException:
            self._permits.release()
            raise

        def closed() -> None:
            worker.leased -= 1
            self._permits.release()

        return AsyncSession(self.specs[env_id], channel, closed)

    async def _channel(self) -> tuple[WorkerProcess, Channel]:
        """A leased channel. A worker that turns out to be dead is passed over: nothing was asked of it yet."""
        while True:
            worker = await self._least_busy()
            worker.leased += 1
            try:
                return worker, (await worker.connection()).open()
            except BaseException as error:
                worker.leased -= 1
                if not isinstance(error, InfraError) or not await worker.is_dead():
                    raise

    async def _least_busy(self) -> WorkerProcess:
        if not self._workers:
            raise InfraError("the pool was not started, or is closed")
        up = [w for w in self._workers if w.up.is_set() and not w.given_up]
        if not up:
            waiting = [asyncio.ensure_future(w.up.wait()) for w in self._workers if not w.given_up]
            if waiting:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in waiting:
                    task.cancel()
            up = [w for w in self._workers if w.up.is_set() and not w.given_up]
        if not up:
            raise InfraError(f"no worker is left; the last one said: {self._workers[-1].last_words()}")
        return min(up, key=lambda w: w.leased)

    async def close(self) -> None:
        """End all workers and their boxes, remove the sockets. Idempotent."""
        workers, self._workers = self._workers, []
        await asyncio.gather(*(worker.close() for worker in workers))
        if self._dir is not None:
            self._dir.remove()

    @property
    def pids(self) -> list[int]:
        """Of the live workers."""
        return [w.process.pid for w in self._workers if w.process is not None and w.process.returncode is None]
