"""Which groups a step plays: a pure function of the run's seed and the place in it, so that a resumed run asks for the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envfarm.seeding import derive_seed
from envfarm.spec import EnvSpec
from rollout.plan import GroupRequest
from rollout.types import SamplingParams


@dataclass(frozen=True)
class EnvChoice:
    """One environment of a run, with what the run makes of it."""

    spec: EnvSpec
    seats: Mapping[str, str]  # role -> policy
    weight: float = 1.0
    setting: Mapping[str, Any] = field(default_factory=dict)


def choose(choices: Sequence[EnvChoice], number: int) -> EnvChoice:
    """The environment of the run's `number`-th group. Shares follow the weights closely in every stretch of groups,
    not only on average: a low-discrepancy sequence (van der Corput, base 2) is read off the cumulated weights."""
    place = _van_der_corput(number) * sum(c.weight for c in choices)
    for choice in choices:
        place -= choice.weight
        if place < 0:
            return choice
    return choices[-1]


def _van_der_corput(number: int) -> float:
    value, unit = 0.0, 0.5
    while number:
        value += unit * (number & 1)
        number, unit = number >> 1, unit / 2
    return value


def draw_groups(
    choices: Sequence[EnvChoice], *, seed: int, stage: str, step: int, groups: int, size: int,
    sampling: SamplingParams, split: str = "train", first: int = 0, any_version: bool = False,
) -> list[GroupRequest]:  # fmt: skip
    """`groups` requests of `size` episodes for one step. `first` is the index of the first group within the step:
    a step that draws again (dynamic sampling) goes on counting, so that no slot is used twice."""
    requests = []
    for index in range(first, first + groups):
        choice = choose(choices, step * groups + index)
        row = derive_seed("instance", seed, stage, step, index, choice.spec.id) % choice.spec.size(split)
        requests.append(
            GroupRequest(
                env=choice.spec.id,
                instance=choice.spec.instance(split, row, dict(choice.setting)),
                size=size,
                stage=stage,
                step=step,
                index=index,
                seats=choice.seats,
                sampling=sampling,
                split=split,
                any_version=any_version,
            )
        )
    return requests
