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
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import envfarm
from envfarm.errors import EnvfarmError, InfraError, UnknownIdError, WorkerDied, did_you_mean
from envfarm.spec import EnvSpec
from envfarm.worker import protocol
from envfarm.worker.client import Address, AsyncSession, Channel, WorkerConnection, connect
from envfarm.worker.lifetime import PrivateDir
from envfarm.worker.protocol import Failed

START_TIMEOUT_S = 60.0
DEATH_NOTICE_S = 2.0
"""From a broken connection to the news that the process ended."""
MAX_FAILED_STARTS = 3
"""In a row; then a slot stays empty, and with all slots empty `session` raises."""


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


class WorkerProcess:
    """One slot of the pool: a child process, started again when it dies."""

    def __init__(self, number: int, specs: list[EnvSpec], folder: Path, backend: str, max_sessions: int):
        self._specs, self._backend, self._max_sessions = specs, backend, max_sessions
        self._folder, self._number, self._starts = folder, number, 0
        self.process: asyncio.subprocess.Process | None = None
        self.up = asyncio.Event()
        self.given_up = False
        self.leased = 0
        self._connecting: asyncio.Future[WorkerConnection] | None = None
        self._closing = False
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises: UserError, InfraError."""
        await self._launch()
        self._watch = asyncio.ensure_future(self._heal())

    async def _launch(self) -> None:
        self._starts += 1
        self._address = Address(unix=str(self._folder / f"{self._number}-{self._starts}.sock"))
        self._log = self._folder / f"{self._number}.log"
        root = str(Path(envfarm.__file__).resolve().parent.parent)
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        with open(self._log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "envfarm.worker", "--owned", "--backend", self._backend,
                "--unix", str(self._address.unix), "--max-sessions", str(self._max_sessions),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(self._specs) + b"\n")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self.process.stdout.readline()
        except TimeoutError:
            self.process.kill()
            raise InfraError(f"a worker did not start within {START_TIMEOUT_S} s; {self.last_words()}") from None
        answer: dict[str, Any] = msgspec.json.decode(line) if line else {}
        if "failed" in answer:
            raise protocol.as_exception(msgspec.convert(answer["failed"], Failed))
        if "ready" not in answer:
            await self.process.wait()
            raise InfraError(f"a worker did not start; {self.last_words()}")
        self.up.set()

    async def _heal(self) -> None:
        """Start the process again whenever it ends, until `close`."""
        failures = 0
        while True:
            assert self.process is not None
            await self.process.wait()
            self.up.clear()
            if not self._closing:
                self._connecting = None
            while not self._closing and not self.up.is_set():
                try:
                    await self._launch()
                    failures = 0
                except EnvfarmError:
                    failures += 1
                    if failures >= MAX_FAILED_STARTS:
                        self.given_up = True
                        self.up.set()  # whoever waits shall look elsewhere
                        return
            if self._closing:
                return

    def last_words(self) -> str:
        """How the process ended, and the end of its log."""
        code = self.process.returncode if self.process is not None else None
        ended = f"ended with exit code {code}" if code is None or code >= 0 else f"was killed by {signal.Signals(-code).name}"
        text = self._log.read_text("utf-8", "replace")[-2000:].strip() if self._log.exists() else ""
        return (
            f"worker {self.process.pid if self.process else '?'} "
            + ("died" if code is None else ended)
            + (f"; its log ends with: {text}" if text else "")
        )

    async def connection(self) -> WorkerConnection:
        """The connection that this worker's sessions share. Raises: InfraError."""
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(connect(self._address, died=self.last_words))
        connecting = self._connecting
        try:
            connection = await asyncio.shield(connecting)
        except InfraError:
            if self._connecting is connecting:
                self._connecting = None
            raise
        if not connection.lost:
            return connection
        if self._connecting is connecting:
            self._connecting = None
        raise WorkerDied(connection.lost)

    async def is_dead(self) -> bool:
        """Whether the process ended; one that just broke its connections is given a moment to."""
        process = self.process
        assert process is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(DEATH_NOTICE_S):
                await process.wait()
        if process.returncode is None:
            return False
        if process is self.process:
            self.up.clear()
        return True

    async def close(self) -> None:
        """Idempotent."""
        self._closing = True
        process = self.process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._watch is not None:
            await self._watch
        connecting = self._connecting
        if connecting is not None and connecting.done() and not connecting.cancelled() and connecting.exception() is None:
            connecting.result().close()
