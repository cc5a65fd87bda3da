"""The run file's lower half: environments, policies, seats, engine, backend, sampling, output.

    run, source = read_run("run.yaml", RolloutFile)
    specs = resolve(run, source, default_registry())       # rollout.run_check: do its parts fit together?

The trainer's `RunFile` is a subclass with the upper half. Shapes are checked by pydantic with the place in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from envfarm.errors import RunFileError
from envfarm.spec import EnvSpec
from envfarm.yaml_source import FileModel, Source, parse_model, read_yaml
from rollout.plan import RunPlan
from rollout.policies import ScriptedPolicy
from rollout.requests import EnvChoice
from rollout.types import SamplingParams

SELF = "self"
"""In `seats`: the current learner."""


class EnvironmentEntry(FileModel):
    """One line of `environments`."""

    id: str
    weight: float = Field(default=1.0, gt=0)
    setting: dict[str, Any] = {}


class OracleOptions(FileModel):
    """`scripted: {oracle: {random: 0.35}}`."""

    random: float = Field(default=0.0, ge=0, le=1)


class OracleScript(FileModel):
    oracle: OracleOptions


class EngineEntry(FileModel):
    """`engine:`, of the run or of one policy."""

    kind: str = "torch"
    max_in_flight: int = Field(default=64, ge=1)
    threads: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=1)  # tokens
    base_url: str | None = None  # of a server, up to before `/chat/completions`
    model: str | None = None  # as the server calls it
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the server's key


class ModelInit(FileModel):
    """`model: {init: {...}}`: a fresh model; the trainer reads what is inside."""

    init: dict[str, Any]


def _named_or_spelled(value: Any) -> str:
    """Which member of a union a value is meant to be, so that errors are about that one."""
    return "spelled" if isinstance(value, (dict, pydantic.BaseModel)) else "named"


Model = Annotated[
    Annotated[str, pydantic.Tag("named")] | Annotated[ModelInit, pydantic.Tag("spelled")],
    pydantic.Discriminator(_named_or_spelled),
]
Scripted = Annotated[
    Annotated[Literal["oracle", "null", "random"], pydantic.Tag("named")] | Annotated[OracleScript, pydantic.Tag("spelled")],
    pydantic.Discriminator(_named_or_spelled),
]


class PolicyEntry(FileModel):
    """Exactly one of `model`, `scripted`, `version`, `engine` says what acts."""

    model: Model | None = None
    trainable: bool = False
    scripted: Scripted | None = None
    version: str | None = Field(default=None, pattern=r"^[^@]+@[A-Za-z0-9][A-Za-z0-9_-]*$")  # learner@STAGE or learner@NUMBER
    engine: EngineEntry | None = None
    renderer: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> PolicyEntry:
        given = [n for n in ("model", "scripted", "version", "engine") if getattr(self, n) is not None]
        if len(given) != 1 and given != ["model", "engine"]:
            said = " and ".join(given) or "none"
            raise ValueError(f"a policy is exactly one of `model`, `scripted`, `version`, `engine`; found {said}")
        if self.trainable and self.model is None:
            raise ValueError(f"only a `model` can be trainable; this policy is given by `{given[0]}`")
        return self

    @property
    def served(self) -> bool:
        """Whether it acts through a server of its own."""
        return self.engine is not None and self.model is None


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
    sampling: SamplingEntry = SamplingEntry()
    retries: int = Field(default=2, ge=0)
    error_budget: float = Field(default=0.25, ge=0, le=1)
    output: str | None = None

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


def script_of(name: str, scripted: str | OracleScript) -> ScriptedPolicy:
    if isinstance(scripted, OracleScript):
        return ScriptedPolicy(name, "oracle", scripted.oracle.random)
    assert scripted in ("oracle", "null", "random")
    return ScriptedPolicy(name, scripted)  # type: ignore[arg-type]


M = TypeVar("M", bound=RolloutFile)

NOT_YET = ("adapt", "ray")
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
