"""What a run is played on: worker processes of this machine, or actors of a Ray cluster where the run file says `ray:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from envfarm.spec import EnvSpec
from envfarm.worker.pool import WorkerPool
from rollout.build import ModelFolder, embedded_engine
from rollout.engines.base import Engine
from rollout.hosts import Host, Pool
from rollout.run import EngineEntry, RolloutFile
from rollout.types import PolicyVersion


class EngineMaker(Protocol):
    """`rollout.build.embedded_engine`, or what stands in for it where engines live elsewhere."""

    def __call__(
        self, entry: EngineEntry, folders: Mapping[str, ModelFolder], versions: Mapping[str, PolicyVersion] | None = None
    ) -> Engine: ...


@runtime_checkable
class HasEngines(Protocol):
    """A place with the engines beside its sessions: whoever builds policies has their engine from it."""

    @property
    def engine(self) -> EngineMaker: ...


class Startable(Protocol):
    async def start(self) -> None:
        """Raises: UserError where this cannot work here, InfraError."""
        ...

    async def close(self) -> None:
        """Idempotent."""
        ...


class LocalPlace(Pool, Startable, Protocol):
    """`envfarm.worker.pool.WorkerPool`."""


class RemotePlace(Host, Startable, Protocol):
    """`rollout.distributed.Fleet`."""


Place = LocalPlace | RemotePlace


def make_place(
    run: RolloutFile, specs: Mapping[str, EnvSpec], *, backend: str | None = None, workers: int | None = None
) -> Place:
    """Not started yet. Raises: MissingDependencyError where `ray:` is asked for and Ray is not installed."""
    backend, workers = backend or run.backend, workers or run.workers
    if run.ray is None:
        return WorkerPool(list(specs.values()), backend=backend, workers=workers)
    from rollout.distributed import Fleet

    return Fleet(run.ray, specs, backend=backend, workers=workers, max_in_flight=run.engine.max_in_flight)


def engine_maker(place: Place) -> EngineMaker:
    return place.engine if isinstance(place, HasEngines) else embedded_engine
