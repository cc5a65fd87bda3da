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
from envfarm.spec_file import Size
from envfarm.yaml_source import FileModel, Source, parse_model, read_yaml
from rollout.engines.base import engine_keys
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
    """`engine:`, of the run or of one policy. Which keys belong to which kind: `rollout.engines.base.ENGINE_KEYS`."""

    kind: str = "torch"
    max_in_flight: int = Field(default=64, ge=1)
    threads: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=1)  # tokens
    base_url: str | None = None  # of a server: `openai` up to before `/chat/completions`, `vllm` its root
    model: str | None = None  # as the server calls it
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the server's key
    serve: bool = False  # vllm: a server of its own that we start and watch, instead of in this process
    device: Literal["cpu", "cuda"] | None = None  # default: what the installed package is built for
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # default: as the model folder says
    kv_cache: Size | None = None  # memory for keys and values
    compile: bool = False  # slower to start, faster to sample
    restarts: int = Field(default=3, ge=0)  # how often an engine that died is started again, with the weights that it had
    transport: Literal["file", "nccl", "ipc"] | None = None  # how new weights reach it; default: as the device allows

    def arguments(self) -> dict[str, Any]:
        """What the engine's class is told besides models and versions."""
        return {key: getattr(self, key) for key in engine_keys(self.kind)}

    def unfitting(self) -> list[str]:
        """Keys that were said and that this kind of engine does not know."""
        return sorted(self.model_fields_set - {"kind", *engine_keys(self.kind)})


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


class ModelInit(FileModel):
    """`model: {init: {...}}`: a fresh model; the trainer reads what is inside."""

    init: dict[str, Any]


def _named_or_spelled(value: Any) -> str:
    """Which member of a union a value is meant to be, so that errors are about that one."""
    return "spelled" if isinstance(value, (dict, pydantic.BaseModel)) else "named"


class LoraEntry(FileModel):
    """`lora:`, small factors beside some projections of every layer, in place of all weights."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)  # the change counts alpha / rank
    targets: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class TrainEntry(FileModel):
    """`train:` of the trainable policy: which weights, and in which type its forward and backward compute."""

    dtype: Literal["float32", "bf16"] = "float32"  # the optimizer's weights are float32 either way
    lora: LoraEntry | None = None  # `{}` takes the defaults; left out, all weights are trained


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
    train: TrainEntry = TrainEntry()
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
        if "train" in self.model_fields_set and not self.trainable:
            raise ValueError("`train` says how a policy is trained; this one is not `trainable: true`")
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


def script_of(name: str, scripted: str | OracleScript) -> ScriptedPolicy:
    if isinstance(scripted, OracleScript):
        return ScriptedPolicy(name, "oracle", scripted.oracle.random)
    assert scripted in ("oracle", "null", "random")
    return ScriptedPolicy(name, scripted)  # type: ignore[arg-type]


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
