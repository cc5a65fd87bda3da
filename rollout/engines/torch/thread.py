"""The embedded engine's thread: callers leave commands and await futures, the thread takes them in between two steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import torch

from envfarm.errors import InfraError
from rollout.engines.base import Generation
from rollout.engines.torch.request import Request

Finished = list[tuple[Request, Generation]]


class EngineThread:
    """`step` computes one step and returns what is finished; it is called for as long as `busy` says so.

    Futures of `promise` are settled whatever happens, also when the thread dies or is closed.
    """

    def __init__(self, step: Callable[[], Finished], busy: Callable[[], bool]):
        self._step, self._busy = step, busy
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._pending: set[asyncio.Future[Any]] = set()
        self._died: BaseException | None = None

    def start(self, cores: int) -> None:
        """`cores` is how many of them one operation may use."""
        self._thread = threading.Thread(target=self._run, args=(cores,), name="torch-engine", daemon=True)
        self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def check(self) -> None:
        """Raises: InfraError where it does not run."""
        if self._thread is None or self._closing or self._died is not None:
            raise InfraError("the engine is not running" + (f": {self._died!r}" if self._died else ""))

    def promise(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def post(self, command: Callable[[], None]) -> None:
        """Have it run in the thread, between two steps."""
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    async def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` there. Its result; raises the ValueError that it raises."""
        future = self.promise()

        def command() -> None:
            try:
                result = function()
            except ValueError as e:
                result = e
            future.get_loop().call_soon_threadsafe(_settle, future, result)

        self.post(command)
        return await future

    async def close(self) -> None:
        """Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        for future in list(self._pending):
            _settle(future, InfraError("the engine was closed"))

    def _run(self, cores: int) -> None:
        torch.set_num_threads(cores)
        try:
            with torch.inference_mode():
                while self._turn():
                    pass
        except BaseException as e:  # the thread's boundary: every caller hears of it, whatever it was
            self._died = e
            for future in list(self._pending):
                error = InfraError(f"the engine died: {e!r}")
                error.__cause__ = e
                future.get_loop().call_soon_threadsafe(_settle, future, error)

    def _turn(self) -> bool:
        """Take in what was posted, then one step; False once closed."""
        with self._wake:
            while not self._inbox and not self._closing and not self._busy():
                self._wake.wait()
            if self._closing:
                return False
            commands, self._inbox = self._inbox, []
        for command in commands:
            command()
        finished = self._step()
        for loop in {request.future.get_loop() for request, _ in finished}:
            loop.call_soon_threadsafe(_settle_all, [i for i in finished if i[0].future.get_loop() is loop])
        return True


def _settle_all(finished: Finished) -> None:
    for request, generation in finished:
        _settle(request.future, generation)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    """Give a future its result or exception, unless its caller has gone."""
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
