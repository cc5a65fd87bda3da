"""What lives in an actor: workers, an engine, and the policies that act here. Built from parcels, one step after the other.

A replica asks nothing of Ray but which node it is on, and knows neither the store nor other replicas. It is awaited by
its actor's event loop; what it holds on disk is a directory of its own, which it removes, or else one of its workers
does when it is gone.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray

import envfarm
from envfarm.bundle import unpack
from envfarm.errors import CapabilityError, EnvfarmError, UserError
from envfarm.farm.pool import FarmPool
from envfarm.spec import EnvSpec, load_spec
from envfarm.worker.lifetime import PrivateDir
from envfarm.worker.pool import WorkerPool
from rollout.build import ModelFolder, embedded_engine, make_renderer
from rollout.distributed.parcels import (
    EngineRecipe,
    Environments,
    Finished,
    Greeting,
    Job,
    ModelFiles,
    ModelSeat,
    Seat,
    Served,
    write_files,
)
from rollout.engines.base import Capabilities, Engine, SeveralPolicies
from rollout.hosts import Here
from rollout.policies import ChatPolicy, EnginePolicy, Policy, ScriptedPolicy
from rollout.types import PolicyVersion


class Replica:
    """`hello`, `open`, `serve` where there are models; then `submit`, and `collect` for ever; `close`."""

    def __init__(self) -> None:
        self._dir: PrivateDir | None = None
        self._pool: WorkerPool | FarmPool | None = None
        self._here: Here | None = None
        self._engine: Engine | None = None
        self._folders: dict[str, ModelFolder] = {}
        self._seated: dict[Seat | PolicyVersion, Policy] = {}
        self._seating = asyncio.Lock()
        self._playing: dict[int, asyncio.Task[None]] = {}
        self._finished: list[Finished] = []
        self._some = asyncio.Event()  # in `_finished`

    async def hello(self) -> Greeting:
        node = ray.get_runtime_context().get_node_id()
        return Greeting(envfarm.__version__, node, socket.gethostname(), os.getpid())

    async def open(self, environments: Environments) -> None:
        """Unpack the environments and start workers for them, or join the farm.

        Raises: UserError where one does not arrive as it was, or cannot be played on this machine, or by that farm.
        """
        self._dir = PrivateDir()
        specs = [self._spec(b, h) for b, h in zip(environments.bundles, environments.hashes, strict=True)]
        self._pool = _pool(environments, specs)
        await self._pool.start()
        self._here = Here(self._pool)
        gc.freeze()  # as `Rollouts` does

    def _spec(self, packed: Any, expected: str) -> EnvSpec:
        spec = load_spec(unpack(packed, self._folder("bundles")))
        if spec.hash != expected:
            raise UserError(f"{spec.id} has hash {spec.hash[:12]} here and {expected[:12]} where the run was started")
        return spec

    async def serve(self, recipe: EngineRecipe, *models: ModelFiles) -> Served:
        """Build and start the engine. Raises: as its `start`."""
        assert self._engine is None, "a replica has one engine"
        for name, files in zip(recipe.names, models, strict=True):
            self._keep(name, files)
        engine = embedded_engine(recipe.entry, self._folders, recipe.versions)
        await engine.start()
        self._engine = engine
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # weights lie in shared memory
        versions = {n: engine.version(n) for n in recipe.names} if isinstance(engine, SeveralPolicies) else {}
        return Served(engine.capabilities, versions)

    async def add_policy(self, version: PolicyVersion, model: ModelFiles) -> Capabilities:
        """Raises: CapabilityError where the engine serves what it was started with only; as the engine's `add_policy`."""
        assert self._engine is not None
        if not isinstance(self._engine, SeveralPolicies):
            raise CapabilityError(f"policy {version.policy!r}: {type(self._engine).__name__} serves one policy only")
        folder = self._keep(version.policy, model)
        await self._engine.add_policy(version, folder.path)
        return self._engine.capabilities

    async def update_weights(self, version: PolicyVersion, packed: Any, options: dict[str, Any]) -> None:
        """Raises: as the engine's `update_weights`."""
        from rollout.engines.torch.transport import unpack as unpack_weights

        assert self._engine is not None
        await self._engine.update_weights(version, unpack_weights(packed), **options)

    async def submit(self, jobs: Sequence[Job]) -> None:
        """Begin to play them. What becomes of each is told by `collect`, under its number."""
        for job in jobs:
            task = self._playing[job.number] = asyncio.create_task(self._play(job))
            task.add_done_callback(lambda _, number=job.number: self._playing.pop(number))  # type: ignore[misc]

    async def collect(self) -> list[Finished]:
        """What has ended since the last call; waits until something has. One caller at a time."""
        await self._some.wait()
        await asyncio.sleep(0)  # what ends in this turn of the loop comes along
        self._some.clear()
        finished, self._finished = self._finished, []
        return finished

    async def call_off(self, number: int) -> None:
        """Nobody waits for that one any more."""
        if number in self._playing:
            self._playing[number].cancel()

    async def _play(self, job: Job) -> None:
        assert self._here is not None
        try:
            policies = {role: await self._policy(seat) for role, seat in job.seats.items()}
            episode = await self._here.play(job.episode, job.instance, policies, job.terms)
            self._finished.append((job.number, msgspec.msgpack.encode(episode)))
        except EnvfarmError as error:
            self._finished.append((job.number, error))
        except Exception as error:  # a bug, told where it can be seen; the exception itself may not pickle
            self._finished.append((job.number, RuntimeError("".join(traceback.format_exception(error)))))
        self._some.set()

    async def _policy(self, seat: Seat) -> Policy:
        """Who acts in that seat, made on first sight."""
        if isinstance(seat, ScriptedPolicy):
            return seat
        key = seat if isinstance(seat, ModelSeat) else seat.version
        async with self._seating:
            if key not in self._seated:
                self._seated[key] = await self._made(seat)
        return self._seated[key]

    async def _made(self, seat: ModelSeat | ChatPolicy) -> Policy:
        if isinstance(seat, ChatPolicy):
            await seat.engine.start()
            return seat
        assert self._engine is not None
        renderer = make_renderer(seat.renderer, self._folders[seat.policy].tokenizer())
        return EnginePolicy(PolicyVersion(seat.policy), self._engine, renderer)

    async def cpu_s(self) -> float:
        """Processor time of this process and its workers so far."""
        assert self._pool is not None
        workers = self._pool.pids if isinstance(self._pool, WorkerPool) else []  # a farm's are no part of it
        return sum(_cpu_s(pid) for pid in (os.getpid(), *workers))

    async def close(self) -> None:
        """Idempotent."""
        chats = [p.engine for p in self._seated.values() if isinstance(p, ChatPolicy)]
        engines = [e for e in (self._engine, *chats) if e is not None]
        await asyncio.gather(*(e.close() for e in engines), *([self._pool.close()] if self._pool is not None else []))
        if self._dir is not None:
            self._dir.remove()

    def _folder(self, name: str) -> Path:
        assert self._dir is not None
        return self._dir.path / name

    def _keep(self, policy: str, files: ModelFiles) -> ModelFolder:
        number = len(self._folders)  # a policy's name may be anything
        self._folders[policy] = write_files(files, self._folder("models") / str(number))
        return self._folders[policy]


def _pool(environments: Environments, specs: list[EnvSpec]) -> WorkerPool | FarmPool:
    """Not started yet."""
    if environments.farm is not None:
        return FarmPool(specs, environments.farm)
    return WorkerPool(specs, backend=environments.backend, workers=environments.workers, max_sessions=environments.max_sessions)


def _cpu_s(pid: int) -> float:
    """User and system time of a process (`man 5 proc`), in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
