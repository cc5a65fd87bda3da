"""The run file's upper half: stages, evaluation, the model that is trained. The lower half is `rollout.run`.

    run, source = read_run("run.yaml", RunFile)
    specs = check(run, source, default_registry())       # trainer.run_check

Budgets are steps, episodes and tokens, never seconds: a slow machine takes longer and learns the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from envfarm.spec import EnvSpec
from envfarm.yaml_source import FileModel
from rollout.requests import EnvChoice
from rollout.run import SELF, RolloutFile
from rollout.run_policies import PolicyEntry

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


class Async(FileModel):
    """Episodes carry over from batch to batch, and go on while the trainer steps."""

    max_staleness: Positive = 2  # updates between sampling a token and training on it; older ones are withheld
    window: Positive | None = None  # groups from the oldest one still played to the newest; default (max_staleness + 1) batches


class Online(Optimizer):
    """Group-relative policy optimization on what the policy does now. `batch` counts episodes."""

    algorithm: Literal["grpo", "reinforce"] = "grpo"
    split: str = "train"
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
    max_staleness: int = Field(0, ge=0)  # updates between sampling a token and training on it; older ones are withheld
    async_: bool | Async = Field(False, alias="async")

    @pydantic.model_validator(mode="after")
    def _async_fits(self) -> Online:
        if self.async_ and "max_staleness" in self.model_fields_set:
            raise ValueError("with `async` the bound stands there: `async: {max_staleness: N}`")
        terms = self.asynchronous
        if terms is not None and terms.window is not None and terms.window * self.group < self.batch:
            raise ValueError(f"a window of {terms.window} groups of {self.group} holds no batch of {self.batch} episodes")
        return self

    @property
    def asynchronous(self) -> Async | None:
        """The terms of asynchronous training; None where it is synchronous."""
        return self.async_ if isinstance(self.async_, Async) else Async.model_validate({}) if self.async_ else None

    @property
    def oldest(self) -> int:
        """The age that a token may have where it is trained on."""
        return self.max_staleness if self.asynchronous is None else self.asynchronous.max_staleness

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
    seats: dict[str, Annotated[list[dict[str, str]], Field(min_length=1)]] = {}
    """Environment -> seatings (role -> policy; the learner where nothing is said) that share the episodes evenly.
    Default: one, as in the run's `seats`."""
    every: int = Field(0, ge=0)  # online steps between points of the learning curve; 0 draws none
    curve: dict[str, Positive] = {"validation": 96}  # what a point of the curve plays

    def count(self, split: str) -> int:
        return self.episodes if isinstance(self.episodes, int) else self.episodes.get(split, 0)


class RunFile(RolloutFile):
    """Everything that `envfarm train` needs to know."""

    stages: list[StageEntry] = Field(min_length=1)
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate.model_validate({}))

    def named_stages(self) -> list[tuple[str, StageEntry]]:
        """Stages with the names of their policies: the kind, `rl` for online, numbered where there are several."""
        names: list[tuple[str, StageEntry]] = []
        for entry in self.stages:
            base = "rl" if entry.kind == "online" else entry.kind
            count = sum(n.split("-")[0] == base for n, _ in names)
            names.append((f"{base}-{count + 1}" if count else base, entry))
        return names

    def seatings(self, spec: EnvSpec) -> list[dict[str, str]]:
        """Role -> policy, for each of the ways in which evaluations seat an environment."""
        given = self.evaluate.seats.get(spec.id)
        if given is None:
            return [self.seats_of(spec)]
        named = [{role: seating.get(role, SELF) for role in spec.roles} for seating in given]
        return [{role: self.learner if name == SELF else name for role, name in seating.items()} for seating in named]

    def evaluation_choices(self, specs: Mapping[str, EnvSpec]) -> list[EnvChoice]:
        """The run's environments in file order, each once for each of its seatings."""
        return [
            EnvChoice(specs[e.id], seats, e.weight, e.setting) for e in self.environments for seats in self.seatings(specs[e.id])
        ]

    @property
    def logs(self) -> LogsEntry | None:
        return next((e.imitation.logs for e in self.stages if e.imitation and e.imitation.logs), None)

    def logging_policy(self, logs: LogsEntry) -> PolicyEntry:
        return self.policies[logs.policy] if isinstance(logs.policy, str) else logs.policy
