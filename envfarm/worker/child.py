"""A worker as a child process: started, watched, started again when it dies, and one connection to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import envfarm
from envfarm.errors import EnvfarmError, InfraError
from envfarm.farm import TOKEN_VARIABLE
from envfarm.spec import EnvSpec
from envfarm.worker import protocol
from envfarm.worker.address import Address
from envfarm.worker.client import WorkerConnection
from envfarm.worker.line import Line
from envfarm.worker.protocol import Failed

START_TIMEOUT_S = 60.0
DEATH_NOTICE_S = 2.0
"""From a broken connection to the news that the process ended."""
MAX_FAILED_STARTS = 3
"""In a row; then a slot stays empty, and a pool with all slots empty gives no sessions."""


@dataclass(frozen=True)
class Shared:
    """How a worker is used by other processes: over TCP, with a token. It takes bundles then."""

    host: str
    token: str
    environment: Mapping[str, str]
    """Variables."""
    changed: Callable[[], None]
    """Called when it is up, and when it is not any more."""


class WorkerProcess:
    """One slot of a pool."""

    def __init__(
        self, number: int, specs: list[EnvSpec], folder: Path, backend: str, max_sessions: int, *,
        shared: Shared | None = None,
    ):  # fmt: skip
        """`folder`: for its socket, log and bundles. `shared`: other processes than this one use it."""
        self._specs, self._backend, self._max_sessions = specs, backend, max_sessions
        self._folder, self._number, self._starts, self._shared = folder, number, 0, shared
        self.process: asyncio.subprocess.Process | None = None
        self.up = asyncio.Event()
        self.given_up = False
        self.leased = 0
        self.address = Address()
        self._line: Line | None = None
        self._closing = False
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises: UserError, InfraError."""
        await self._launch()
        self._watch = asyncio.ensure_future(self._heal())

    async def _launch(self) -> None:
        self._starts += 1
        self._log = self._folder / f"{self._number}.log"
        root = str(Path(envfarm.__file__).resolve().parent.parent)
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        with open(self._log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "envfarm.worker", "--owned", "--backend", self._backend,
                "--max-sessions", str(self._max_sessions), *self._listening(),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
                env={**os.environ, **self._variables(), "PYTHONPATH": path},
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
        self.address = Address.of(answer["ready"], self._shared.token if self._shared else None)
        self._line = Line(self.address, self.last_words)
        self._set(up=True)

    def _set(self, *, up: bool) -> None:
        (self.up.set if up else self.up.clear)()
        if self._shared is not None:
            self._shared.changed()

    def _variables(self) -> Mapping[str, str]:
        return {TOKEN_VARIABLE: self._shared.token, **self._shared.environment} if self._shared is not None else {}

    def _listening(self) -> list[str]:
        if self._shared is None:
            return ["--unix", str(self._folder / f"{self._number}-{self._starts}.sock")]
        return ["--host", self._shared.host, "--bundles", str(self._folder / "bundles")]

    async def _heal(self) -> None:
        """Start the process again whenever it ends, until `close`."""
        failures = 0
        while True:
            assert self.process is not None
            await self.process.wait()
            self._set(up=False)
            while not self._closing and not self.up.is_set():
                try:
                    await self._launch()
                    failures = 0
                except EnvfarmError:
                    failures += 1
                    if failures >= MAX_FAILED_STARTS:
                        self.given_up = True
                        self._set(up=True)  # whoever waits shall look elsewhere
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
        if self._line is None:
            raise InfraError("the worker was not started")
        return await self._line.connection()

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
            self._set(up=False)
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
        if self._line is not None:
            self._line.close()
