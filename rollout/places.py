"""What a run is played on: worker processes of its own or those of a farm (`farm:`), from here or from the actors of a Ray
cluster (`ray:`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from envfarm.errors import UserError
from envfarm.farm.pool import FarmPool
from envfarm.spec import EnvSpec
from envfarm.worker.pool import WorkerPool
from rollout.build import ModelFolder, embedded_engine
from rollout.engines.base import Engine
from rollout.hosts import Host, Pool
from rollout.run import RolloutFile
from rollout.run_policies import EngineEntry
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
    """`envfarm.worker.pool.WorkerPool`, `envfarm.farm.pool.FarmPool`."""


class RemotePlace(Host, Startable, Protocol):
    """`rollout.distributed.Fleet`."""


Place = LocalPlace | RemotePlace


@dataclass(frozen=True)
class Where:
    """What a command line says about where to play; None: as the run file has it, else the default."""

    backend: str | None = None
    workers: int | None = None
    farm: str | None = None

    def pool(self, specs: Mapping[str, EnvSpec]) -> LocalPlace:
        """Not started yet. Raises: as `check`."""
        self.check()
        if self.farm is None:
            return WorkerPool(list(specs.values()), backend=self.backend or "bubblewrap", workers=self.workers or 2)
        return FarmPool(list(specs.values()), self.farm)

    def check(self) -> None:
        """Raises: UserError where a farm is asked for, and what it decides too."""
        if self.farm is not None and (self.backend is not None or self.workers is not None):
            raise UserError(f"the farm {self.farm!r} has workers and boxes of its own: leave out --backend and --workers")


def make_place(run: RolloutFile, specs: Mapping[str, EnvSpec], where: Where = Where()) -> Place:
    """Not started yet. Raises: as `Where.check`; MissingDependencyError where `ray:` is asked for and Ray is not installed."""
    farm = where.farm or run.farm
    asked = replace(where, farm=farm)
    asked.check()
    backend, workers = where.backend or run.backend, where.workers or run.workers
    if run.ray is None:
        return (asked if farm is not None else Where(backend, workers)).pool(specs)
    from rollout.distributed import Fleet

    return Fleet(run.ray, specs, backend=backend, workers=workers, max_in_flight=run.engine.max_in_flight, farm=farm)


def engine_maker(place: Place) -> EngineMaker:
    return place.engine if isinstance(place, HasEngines) else embedded_engine
