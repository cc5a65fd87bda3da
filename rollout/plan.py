"""What is to be played: the plan of a run and the groups that it asks for. Data that pickles; `rollout.scheduler` plays it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from envfarm.spec import EnvSpec, Instance
from rollout.types import SamplingParams

Slot = tuple[str, int, int, int]
"""`(stage, step, group index, member)`: one place in a run's dispatch order, filled by one finished episode."""


@dataclass(frozen=True)
class RunPlan:
    """What the scheduler needs of a run: picklable, built from a run file (`rollout.run.RolloutFile.plan`)."""

    run: str
    seed: int
    specs: Mapping[str, EnvSpec]
    max_in_flight: int = 64
    retries: int = 2  # further attempts after an infra error
    error_budget: float = 0.25  # share of failed episodes that halts the run
    token_budget: int = 0  # sampled tokens per seat and episode; 0 is none


@dataclass(frozen=True)
class GroupRequest:
    """`size` episodes of one instance. `(stage, step, index)` names it within the run, once."""

    env: str
    instance: Instance
    size: int
    stage: str
    step: int
    index: int
    seats: Mapping[str, str]  # role -> name of a policy
    sampling: SamplingParams = field(default_factory=SamplingParams)
    split: str = "train"
    seed_key: tuple[str | int, ...] = ()
    """What sampling seeds depend on instead of `(stage, step, index)`: evaluations name the instance, so that one
    is sampled alike whichever run or stage asks."""
    any_version: bool = False
    """A finished episode that the store has will do, whatever weights played it: for training that takes the age of
    every token where it is used (`rollout.feed`)."""

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.step}/{self.index}"

    @property
    def seeded_by(self) -> tuple[str | int, ...]:
        return self.seed_key or (self.stage, self.step, self.index)
