"""The run file's upper half: stages, evaluation, the model that is trained. The lower half is `rollout.run`.

    run, source = read_run("run.yaml", RunFile)
    specs = check(run, source, default_registry())

Budgets are steps, episodes and tokens, never seconds: a slow machine takes longer and learns the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from envfarm.errors import RunFileError, did_you_mean
from envfarm.registry import Registry
from envfarm.spec import EnvSpec
from envfarm.yaml_source import FileModel, Source
from rollout.engines.base import ENGINES
from rollout.renderers.base import RENDERERS
from rollout.run import PolicyEntry, RolloutFile, resolve

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class LogsEntry(FileModel):
    """`logs:` of an imitation stage: who plays, how often, once and for all."""

    policy: str | PolicyEntry  # a scripted one; its name in `policies`, or written here
    episodes: Positive
    split: str = "train"


class Optimizer(FileModel):
    """What every stage may say about its updates."""

    lr: Rate = 1e-3
    batch: Positive = 64
    warmup: int = Field(10, ge=0)  # steps over which the learning rate rises from 0
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, ge=0)


class Imitation(Optimizer):
    """Cross entropy on every logged episode. `until: validation_flat` ends it before `steps`."""

    logs: LogsEntry | None = None
    until: Literal["validation_flat"] | None = None
    steps: Positive = 2000
    lr: Rate = 2e-3
    check: Positive = 25  # steps between validation losses
    patience: Positive = 3  # checks without gain that count as flat
    min_gain: float = Field(0.003, ge=0)  # relative
    holdout: float = Field(0.1, gt=0, lt=1)  # share of the logged instances that validate


class Offline(Optimizer):
    """More from the same logs: successes only (`filtered_bc`), or all with weights by their return (`awr`)."""

    algorithm: Literal["filtered_bc", "awr"]
    steps: Positive = 200
    shortest: Rate = 1.0  # filtered_bc: of the successes, the share with the fewest turns
    beta: float = Field(0.3, gt=0)  # awr: its temperature
    discount: Rate = 0.97  # awr: per turn


class DynamicSampling(FileModel):
    """Groups whose members agree are drawn again, up to `rounds` times a step."""

    rounds: Positive = 3


class Online(Optimizer):
    """Group-relative policy optimization on what the policy does now. `batch` counts episodes."""

    algorithm: Literal["grpo", "reinforce"] = "grpo"
    group: int = Field(8, ge=2)
    steps: Positive = 100
    from_: str | None = Field(None, alias="from")  # the stage whose policy it starts from; default: the one before
    dynamic_sampling: bool | DynamicSampling = False
    updates: Positive = 1  # optimizer steps per batch
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    divide_by_std: bool = False
    discount: Rate = 1.0  # per turn
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    truncate: float = Field(2.0, ge=0)
    decay: Rate = 1.0  # the learning rate's share that is left at the last step, reached in a straight line

    @property
    def rounds(self) -> int:
        """How often a step may draw groups."""
        sampling = self.dynamic_sampling
        return sampling.rounds if isinstance(sampling, DynamicSampling) else 3 if sampling else 1


class StageEntry(FileModel):
    """One line of `stages`: exactly one kind."""

    imitation: Imitation | None = None
    offline: Offline | None = None
    online: Online | None = None

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> StageEntry:
        given = [k for k in ("imitation", "offline", "online") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"a stage is exactly one of `imitation`, `offline`, `online`; found {' and '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> str:
        return next(k for k in ("imitation", "offline", "online") if getattr(self, k) is not None)

    @property
    def settings(self) -> Imitation | Offline | Online:
        return getattr(self, self.kind)


class Evaluate(FileModel):
    """Every stage's policy plays the same first instances of each split, split evenly between the environments."""

    splits: list[str] = Field(["train", "validation", "heldout"], min_length=1)
    episodes: Positive | dict[str, Positive] = 300  # of each split
    temperature: float | None = Field(None, ge=0)  # default: as sampled in training
    every: int = Field(0, ge=0)  # online steps between points of the learning curve; 0 draws none
    curve: dict[str, Positive] = {"validation": 96}  # what a point of the curve plays

    def count(self, split: str) -> int:
        return self.episodes if isinstance(self.episodes, int) else self.episodes.get(split, 0)


class RunFile(RolloutFile):
    """Everything that `envfarm train` needs to know."""

    stages: list[StageEntry] = Field(min_length=1)
    evaluate: Evaluate = Evaluate()

    def named_stages(self) -> list[tuple[str, StageEntry]]:
        """Stages with the names of their policies: the kind, `rl` for online, numbered where there are several."""
        names: list[tuple[str, StageEntry]] = []
        for entry in self.stages:
            base = "rl" if entry.kind == "online" else entry.kind
            count = sum(n.split("-")[0] == base for n, _ in names)
            names.append((f"{base}-{count + 1}" if count else base, entry))
        return names

    @property
    def logs(self) -> LogsEntry | None:
        return next((e.imitation.logs for e in self.stages if e.imitation and e.imitation.logs), None)

    def logging_policy(self, logs: LogsEntry) -> PolicyEntry:
        return self.policies[logs.policy] if isinstance(logs.policy, str) else logs.policy


def check(run: RunFile, source: Source, registry: Registry) -> dict[str, EnvSpec]:
    """The specs of the run. Raises: RunFileError with the place of what does not fit, CapabilityError."""
    specs = resolve(run, source, registry)
    for message, path in _problems(run, specs):
        raise RunFileError(message, source.at(*path))
    return specs


def _problems(run: RunFile, specs: Mapping[str, EnvSpec]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    yield from _learner_problems(run)
    yield from _stage_problems(run)
    yield from _split_problems(run, specs)


def _learner_problems(run: RunFile) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    trainable = [n for n, p in run.policies.items() if p.trainable]
    if len(trainable) != 1:
        found = ", ".join(trainable) or "none"
        yield f"training needs exactly one policy with `trainable: true`; found {found}", ("policies",)
    for name, entry in run.policies.items():
        if entry.renderer is not None and entry.renderer not in RENDERERS:
            hint = did_you_mean(entry.renderer, RENDERERS)
            yield f"no renderer {entry.renderer!r}{hint}; there are: {', '.join(RENDERERS)}", ("policies", name, "renderer")
        if entry.trainable and entry.engine is not None:
            yield "the trainable policy plays on the run's own engine", ("policies", name, "engine")
    if run.engine.kind not in ENGINES:
        hint = did_you_mean(run.engine.kind, ENGINES)
        yield f"no engine {run.engine.kind!r}{hint}; there are: {', '.join(ENGINES)}", ("engine", "kind")


def _stage_problems(run: RunFile) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    known = ["untrained"]
    logged = False
    for index, (name, entry) in enumerate(run.named_stages()):
        at = ("stages", index, entry.kind)
        logs = entry.imitation.logs if entry.imitation else None
        if logs is not None:
            yield from _logs_problems(run, logs, (*at, "logs"))
            if logged:
                yield "the run has logs already; one set of logs serves all stages", (*at, "logs")
            logged = True
        if entry.kind in ("imitation", "offline") and not logged:
            yield f"{entry.kind} needs logs: say `logs: {{policy: ..., episodes: ...}}` in the first imitation stage", at
        if entry.online is not None:
            begin = entry.online.from_
            if begin is not None and begin not in known:
                yield f"no stage {begin!r} before this one{did_you_mean(begin, known)}; there are: {', '.join(known)}", (*at, "from")
            if entry.online.batch % entry.online.group:
                yield f"batch ({entry.online.batch} episodes) must be a multiple of group ({entry.online.group})", (*at, "batch")
            if run.sampling.top_p < 1 or run.sampling.temperature == 0:
                yield (
                    "online training samples from the whole distribution: with top_p below 1 or temperature 0 the "
                    "recorded logprobs are not those of the policy that is trained"
                ), ("sampling",)
            if entry.online.group > run.engine.max_in_flight:
                yield f"a group of {entry.online.group} does not fit into max_in_flight", ("engine", "max_in_flight")
        known.append(name)


def _logs_problems(run: RunFile, logs: LogsEntry, at: tuple[str | int, ...]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    if isinstance(logs.policy, str) and logs.policy not in run.policies:
        yield f"no policy {logs.policy!r}{did_you_mean(logs.policy, run.policies)}; there are: {', '.join(run.policies)}", (*at, "policy")
        return
    if run.logging_policy(logs).scripted is None:
        yield "logs are played by a scripted policy, for example `{scripted: {oracle: {random: 0.35}}}`", (*at, "policy")


def _split_problems(run: RunFile, specs: Mapping[str, EnvSpec]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    logs = run.logs
    if logs is not None:
        index = next(i for i, e in enumerate(run.stages) if e.imitation and e.imitation.logs)
        yield from _trained_on(logs.split, specs, ("stages", index, "imitation", "logs", "split"))
    for spec in specs.values():
        if "train" not in spec.splits and any(e.online for e in run.stages):
            yield f"{spec.id} has no split 'train'", ("environments",)
    for index, split in enumerate(run.evaluate.splits):
        for spec in specs.values():
            if split not in spec.splits and split != "real":
                hint = did_you_mean(split, spec.splits)
                yield f"{spec.id} has no split {split!r}{hint}; it has: {', '.join(spec.splits)}", ("evaluate", "splits", index)
    if isinstance(run.evaluate.episodes, dict):
        for split in run.evaluate.splits:
            if split not in run.evaluate.episodes:
                yield f"evaluate.episodes says nothing of the split {split!r}", ("evaluate", "episodes")
    for split in run.evaluate.curve:
        if any(split not in spec.splits for spec in specs.values()):
            yield f"no such split in every environment: {split!r}", ("evaluate", "curve", split)


def _trained_on(split: str, specs: Mapping[str, EnvSpec], at: tuple[str | int, ...]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    if split == "real":
        yield "the split 'real' measures the gap and is never trained on; use 'train'", at
    for spec in specs.values():
        if split != "real" and split not in spec.splits:
            hint = did_you_mean(split, spec.splits)
            yield f"{spec.id} has no split {split!r}{hint}; it has: {', '.join(spec.splits)}", at
