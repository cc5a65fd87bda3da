"""Workers as processes of this machine: children of the keeper, which die with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from envfarm.farm.places import WorkerInfo
from envfarm.spec import EnvSpec
from envfarm.worker.child import Shared, WorkerProcess

MAX_SESSIONS = 1024
_HOST = "127.0.0.1"


class Processes:
    """`pools`: what the workers of each serve at once. `variables`: of the environment of a pool's workers, by its number."""

    def __init__(
        self, pools: Sequence[list[EnvSpec]], counts: Sequence[int], folder: Path, *, backend: str, token: str,
        variables: Callable[[int], Mapping[str, str]], changed: Callable[[], None],
    ):  # fmt: skip
        self._pools, self._counts, self._folder = pools, list(counts), folder
        self._backend, self._token, self._variables, self._changed = backend, token, variables, changed
        self._workers: list[list[WorkerProcess]] = [[] for _ in pools]

    async def start(self) -> None:
        await asyncio.gather(*(self.scale(pool, count) for pool, count in enumerate(self._counts)))

    async def scale(self, pool: int, workers: int) -> None:
        there = self._workers[pool]
        spare = there[workers:]
        del there[workers:]
        fresh = [self._worker(pool, number) for number in range(len(there), workers)]
        there.extend(fresh)
        try:
            await asyncio.gather(*(worker.start() for worker in fresh), *(worker.close() for worker in spare))
        except BaseException:
            await asyncio.gather(*(worker.close() for worker in fresh))
            self._workers[pool] = [worker for worker in there if worker not in fresh]
            raise
        finally:
            self._changed()

    def _worker(self, pool: int, number: int) -> WorkerProcess:
        folder = self._folder / f"pool-{pool}"
        folder.mkdir(exist_ok=True)
        shared = Shared(_HOST, self._token, self._variables(pool), self._changed)
        return WorkerProcess(number, self._pools[pool], folder, self._backend, MAX_SESSIONS, shared=shared)

    def workers(self) -> list[WorkerInfo]:
        return [
            self._info(pool, number, worker)
            for pool, workers in enumerate(self._workers)
            for number, worker in enumerate(workers)
        ]

    def _info(self, pool: int, number: int, worker: WorkerProcess) -> WorkerInfo:
        up = worker.up.is_set() and not worker.given_up
        said = "" if up else f"given up: {worker.last_words()}" if worker.given_up else "is being started"
        return WorkerInfo(f"{pool}-{number}", pool, up, str(worker.address) if up else "", said)

    async def close(self) -> None:
        workers = [worker for pool in self._workers for worker in pool]
        self._workers = [[] for _ in self._pools]
        await asyncio.gather(*(worker.close() for worker in workers), return_exceptions=True)
