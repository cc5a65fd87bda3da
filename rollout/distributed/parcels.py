"""What travels to a replica: environments, model folders, and one attempt at a time. Data that pickles."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envfarm.bundle import Bundle, bundle
from envfarm.errors import CapabilityError
from envfarm.spec import EnvSpec, Instance
from rollout.build import ModelFolder
from rollout.engines.base import Capabilities
from rollout.episode import Terms
from rollout.policies import ChatPolicy, EnginePolicy, Policy, ScriptedPolicy
from rollout.run_policies import EngineEntry
from rollout.types import Episode, PolicyVersion

ModelFiles = Mapping[str, np.ndarray]
"""The files of a model folder, by name: uint8 [bytes], which the object store shares without a copy."""


@dataclass(frozen=True)
class Greeting:
    """What a replica is, before it is given anything."""

    envfarm: str  # version
    node: str  # Ray's id
    host: str
    pid: int


@dataclass(frozen=True)
class Environments:
    """What a replica's workers serve."""

    bundles: Sequence[Bundle]
    hashes: Sequence[str]  # of the specs, in the same order
    backend: str
    workers: int
    max_sessions: int  # of each worker
    farm: str | None  # whose workers are played on, in place of some beside the replica

    @classmethod
    def pack(
        cls, specs: Sequence[EnvSpec], *, backend: str, workers: int, max_sessions: int, farm: str | None = None
    ) -> Environments:
        return cls([bundle(s) for s in specs], [s.hash for s in specs], backend, workers, max_sessions, farm)


@dataclass(frozen=True)
class EngineRecipe:
    """An engine, to be built late. The folders of `names` come beside it, as references."""

    entry: EngineEntry
    names: tuple[str, ...]
    versions: Mapping[str, PolicyVersion]


@dataclass(frozen=True)
class Served:
    """What came of an `EngineRecipe`."""

    capabilities: Capabilities
    versions: Mapping[str, PolicyVersion]  # where the engine says


@dataclass(frozen=True)
class ModelSeat:
    """A policy of the replica's engine."""

    policy: str
    renderer: str  # module:Class


Seat = ModelSeat | ScriptedPolicy | ChatPolicy
"""Who acts, as data. A `ChatPolicy` travels with its engine, which pickles as what it was made from."""


@dataclass(frozen=True)
class Job:
    """One attempt."""

    number: int  # among all that its slot was ever given
    episode: Episode  # blank
    instance: Instance
    seats: Mapping[str, Seat]  # by role
    terms: Terms


Finished = tuple[int, bytes | Exception]
"""A job's number, and its episode as MessagePack, or what playing it raised."""


def seat_of(policy: Policy) -> Seat:
    """Raises: CapabilityError for a policy that is tied to this process."""
    if isinstance(policy, EnginePolicy):
        kind = type(policy.renderer)
        return ModelSeat(policy.version.policy, f"{inspect.getmodule(kind).__name__}:{kind.__qualname__}")  # type: ignore[union-attr]
    if isinstance(policy, (ScriptedPolicy, ChatPolicy)):
        return policy
    raise CapabilityError(f"a policy of type {type(policy).__name__} cannot be sent to Ray's actors")


def read_files(folder: ModelFolder) -> ModelFiles:
    """Hidden files and folders excepted."""
    files = sorted(p for p in folder.path.iterdir() if p.is_file() and not p.name.startswith("."))
    return {p.name: np.fromfile(p, dtype=np.uint8) for p in files}


def write_files(files: ModelFiles, folder: Path) -> ModelFolder:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.data)
    return ModelFolder.open(folder)
