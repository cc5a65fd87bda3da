"""Sessions for programs whose event loop is not ours: another trainer's, one loop per call, or none at all.

    sessions = shared_sessions()                   # one per process, closed when it ends
    session = await sessions.open(spec)            # from any loop: reset, step, finish, close as in a rollout
    turn = sessions.wait(sessions.open(spec))      # from code without a loop

Workers live in a loop of their own, in a thread of this process, so that they outlast whatever loop asks: trainers
start and end several. A spec gets its workers when it is first asked for; they die with this process, however it ends.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from envfarm.session import Turn
from envfarm.spec import EnvSpec
from envfarm.tools import Action
from envfarm.worker.client import AsyncSession
from envfarm.worker.pool import WorkerPool

T = TypeVar("T")


class Sessions:
    """Worker pools of one process, one per spec."""

    def __init__(self, *, backend: str = "bubblewrap", workers: int = 1):
        self._backend, self._count = backend, workers
        self._pools: dict[str, asyncio.Task[WorkerPool]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    async def open(self, spec: EnvSpec) -> RemoteSession:
        """A session of `spec`, to be closed whatever happens.

        Raises: UserError where the spec cannot be served here (no boxes), InfraError where its workers died.
        """
        return RemoteSession(self, await self.run(self._open(spec)))

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` in the loop of the workers. Cancelling this cancels it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._started()))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The same for code without a loop. Blocks the calling thread; where that is interrupted, the work is called off."""
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End all workers. Idempotent."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close_pools(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_serve, args=(self._loop,), name="envfarm sessions", daemon=True)
                self._thread.start()
            return self._loop

    async def _open(self, spec: EnvSpec) -> AsyncSession:
        if spec.hash not in self._pools:
            self._pools[spec.hash] = asyncio.create_task(self._start(spec))
        try:
            pool = await asyncio.shield(self._pools[spec.hash])
        except Exception:
            self._pools.pop(spec.hash, None)  # whoever asks next tries again
            raise
        return await pool.session(spec.id)

    async def _start(self, spec: EnvSpec) -> WorkerPool:
        pool = WorkerPool([spec], backend=self._backend, workers=self._count)
        await pool.start()
        return pool

    async def _close_pools(self) -> None:
        starting, self._pools = list(self._pools.values()), {}
        for pool in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(pool, WorkerPool):
                await pool.close()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


class RemoteSession:
    """`rollout.policies.AsyncSession` whose calls are answered in the loop of the workers."""

    def __init__(self, sessions: Sessions, session: AsyncSession):
        self.env_spec = session.env_spec
        self._sessions, self._session = sessions, session

    async def reset(self, instance: Any) -> Turn:
        return await self._sessions.run(self._session.reset(instance))

    async def step(self, action: Action) -> Turn:
        return await self._sessions.run(self._session.step(action))

    async def finish(self, reason: str) -> Turn:
        return await self._sessions.run(self._session.finish(reason))

    async def oracle(self) -> str:
        return await self._sessions.run(self._session.oracle())

    async def random(self, seed: int) -> str:
        return await self._sessions.run(self._session.random(seed))

    async def close(self) -> None:
        await self._sessions.run(self._session.close())


_SHARED: dict[tuple[int, str, int], Sessions] = {}


def shared_sessions(*, backend: str = "bubblewrap", workers: int = 1) -> Sessions:
    """This process's sessions on that backend; a forked process gets its own. Closed when the process ends."""
    key = (os.getpid(), backend, workers)
    if key not in _SHARED:
        _SHARED[key] = Sessions(backend=backend, workers=workers)
        atexit.register(_close_own, key)
    return _SHARED[key]


def _close_own(key: tuple[int, str, int]) -> None:
    if key[0] == os.getpid():
        _SHARED.pop(key).close()
