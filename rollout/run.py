"""The run file's lower half: environments, policies, seats, engine, backend, sampling, output.

    run, source = read_run("run.yaml", RolloutFile)
    specs = resolve(run, source, default_registry())       # rollout.run_check: do its parts fit together?

The trainer's `RunFile` is a subclass with the upper half. Shapes are checked by pydantic with the place in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import Field

from envfarm.errors import RunFileError
from envfarm.spec import EnvSpec
from envfarm.spec_file import Size
from envfarm.yaml_source import FileModel, Source, parse_model, read_yaml
from rollout.plan import RunPlan
from rollout.policies import ScriptedPolicy
from rollout.requests import EnvChoice
from rollout.run_policies import EngineEntry, PolicyEntry, script_of
from rollout.types import SamplingParams

SELF = "self"
"""In `seats`: the current learner."""


class EnvironmentEntry(FileModel):
    """One line of `environments`."""

    id: str
    weight: float = Field(default=1.0, gt=0)
    setting: dict[str, Any] = {}


class RayEntry(FileModel):
    """`ray:`, where episodes are played by actors of a Ray cluster. What is asked for is of each actor."""

    workers: int = Field(ge=1)  # actors; each has an engine and `workers` processes with sessions
    address: str | None = Field(default=None, pattern=r"^(auto|(ray://)?[^/:\s]+:\d+)$")  # default: a cluster of our own, here
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    resources: dict[str, float] = {}
    env: dict[str, str] = {}  # environment variables
    object_store: Size = Field(default=1 << 30, ge=80 << 20)  # of a cluster of our own
    start_timeout_s: float = Field(default=180.0, gt=0)  # until each has its place and answers

    def asks(self) -> str:
        """For error messages."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return ", ".join(f"{name} {amount:g}" for name, amount in asked.items() if amount)


class SamplingEntry(FileModel):
    """`sampling:` of every reply."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=64, ge=1)
    episode_tokens: int = Field(default=0, ge=0)  # per seat and episode; 0 is no limit

    def params(self, *, temperature: float | None = None) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature if temperature is None else temperature, top_p=self.top_p,
            max_tokens=self.max_tokens,
        )  # fmt: skip


class RolloutFile(FileModel):
    """What a rollout needs to know; the trainer's run file says more."""

    envfarm: Literal[1]
    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    environments: list[EnvironmentEntry] = Field(min_length=1)
    policies: dict[str, PolicyEntry] = Field(min_length=1)
    seats: dict[str, dict[str, str]] = {}
    engine: EngineEntry = EngineEntry()
    backend: str = "bubblewrap"
    workers: int = Field(default=2, ge=1)
    ray: RayEntry | None = None
    farm: str | None = None  # the name of a farm that is up on this machine, or its keeper's URL
    sampling: SamplingEntry = SamplingEntry()
    retries: int = Field(default=2, ge=0)
    error_budget: float = Field(default=0.25, ge=0, le=1)
    output: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> RolloutFile:
        said = sorted(self.model_fields_set & {"backend", "workers"}) if self.farm is not None else []
        if said:
            raise ValueError(f"`farm` has workers and boxes of its own: leave out {' and '.join(f'`{key}`' for key in said)}")
        return self

    @property
    def learner(self) -> str:
        """The policy that sits where nothing else is said: the trainable one, or the only one.

        Raises: ValueError where there is no such one.
        """
        trainable = [name for name, entry in self.policies.items() if entry.trainable]
        candidates = trainable or list(self.policies)
        if len(candidates) != 1:
            raise ValueError(f"which of {', '.join(candidates)} sits where `seats` says nothing?")
        return candidates[0]

    @property
    def folder(self) -> Path:
        return Path(self.output or f"runs/{self.run}")

    def plan(self, specs: Mapping[str, EnvSpec]) -> RunPlan:
        return RunPlan(
            run=self.run, seed=self.seed, specs=dict(specs), max_in_flight=self.engine.max_in_flight,
            retries=self.retries, error_budget=self.error_budget, token_budget=self.sampling.episode_tokens,
        )  # fmt: skip

    def scripted_policies(self) -> dict[str, ScriptedPolicy]:
        """The policies that need no engine, ready to play."""
        return {name: script_of(name, e.scripted) for name, e in self.policies.items() if e.scripted is not None}

    def seats_of(self, spec: EnvSpec, *, learner: str | None = None) -> dict[str, str]:
        """Role -> policy for one environment; `learner` sits where the learner would."""
        given = self.seats.get(spec.id, {})
        asked = learner is not None or SELF in given.values() or not self._all_seated(spec)
        own = self.learner if asked else ""
        names = {role: given.get(role, SELF) for role in spec.roles}
        names = {role: own if name == SELF else name for role, name in names.items()}
        return {role: learner if learner is not None and name == own else name for role, name in names.items()}

    def choices(self, specs: Mapping[str, EnvSpec], *, learner: str | None = None) -> list[EnvChoice]:
        """The run's environments in file order, seated."""
        return [
            EnvChoice(specs[e.id], self.seats_of(specs[e.id], learner=learner), e.weight, e.setting) for e in self.environments
        ]

    def _all_seated(self, spec: EnvSpec) -> bool:
        return set(spec.roles) <= set(self.seats.get(spec.id, {}))


M = TypeVar("M", bound=RolloutFile)

NOT_YET = ("adapt",)
"""Keys of a run file that are designed and not there yet: refused by name."""

UPPER_HALF = frozenset({"stages", "evaluate"})
"""Keys that the trainer's run file adds. A plain rollout reads past them, so that one file serves both."""


def read_run(path: str | Path, model: type[M]) -> tuple[M, Source]:
    """Raises: RunFileError with file:line:column."""
    source = read_yaml(str(path), RunFileError)
    for key in NOT_YET:
        if isinstance(source.data, dict) and key in source.data and key not in model.model_fields:
            raise RunFileError(f"`{key}:` is not implemented yet; leave it out", source.key_at(key))
    if model is RolloutFile and isinstance(source.data, dict):
        source = replace(source, data={k: v for k, v in source.data.items() if k not in UPPER_HALF})
    return parse_model(source, model, RunFileError), source
