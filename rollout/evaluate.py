"""How often a policy succeeds, with an interval, on instances that every policy is given alike.

An evaluation plays the first instances of a split, one episode each, split evenly between the environments. Episodes
that are not ok are counted apart and never as failures. Two evaluations of the same instances are compared pairwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rollout.plan import GroupRequest
from rollout.requests import EnvChoice
from rollout.scheduler import Rollouts
from rollout.types import Episode, Group, SamplingParams

Z95 = 1.959963984540054
NO_FIGURE = "–"
"""Of what was not measured, wherever people read figures: no episode came to its end is not success 0."""


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): holds at small counts and at 0 and 1. (0, 1) where nothing was counted."""
    if episodes == 0:
        return 0.0, 1.0
    share, z2 = successes / episodes, Z95 * Z95
    centre = (share + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = Z95 / (1 + z2 / episodes) * math.sqrt(share * (1 - share) / episodes + z2 / (4 * episodes**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return 0.0 if successes == 0 else low, 1.0 if successes == episodes else high  # to the bit, where rounding would not


@dataclass(frozen=True)
class Outcome:
    """One evaluated episode. `key` names the instance, so that two policies' outcomes pair up."""

    env: str
    key: str
    success: bool
    reward: float
    turns: int
    stop: str
    malformed: int


@dataclass
class EvalResult:
    """Outcomes of one policy on one split."""

    split: str
    policy: str
    outcomes: list[Outcome] = field(default_factory=list)
    not_ok: dict[str, int] = field(default_factory=dict)  # by StopReason; in no other figure

    @property
    def success(self) -> float | None:
        """None where nothing was counted, as all means."""
        return mean_of([float(o.success) for o in self.outcomes])

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(sum(o.success for o in self.outcomes), len(self.outcomes))

    @property
    def episodes(self) -> int:
        return len(self.outcomes)

    @property
    def by_env(self) -> dict[str, EvalResult]:
        names = dict.fromkeys(o.env for o in self.outcomes)
        return {n: EvalResult(self.split, self.policy, [o for o in self.outcomes if o.env == n]) for n in names}

    def to_json(self) -> dict[str, Any]:
        """`{"success", "ci95", "episodes", "by_env", ...}` as in a run's summary."""
        plain = self._figures()
        plain["by_env"] = {name: part._figures() for name, part in self.by_env.items()}
        return plain | {"not_ok": self.not_ok, "split": self.split, "policy": self.policy}

    def _figures(self) -> dict[str, Any]:
        return {
            "success": self.success, "ci95": list(self.ci95), "episodes": self.episodes,
            "reward": mean_of([o.reward for o in self.outcomes]),
            "turns": mean_of([o.turns for o in self.outcomes]),
            "malformed": mean_of([o.malformed for o in self.outcomes]),
        }  # fmt: skip


def mean_of(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def shown(value: float | None, digits: int) -> str:
    return NO_FIGURE if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Paired:
    """The mean difference of two policies' success on the same instances."""

    mean: float
    ci95: tuple[float, float]
    episodes: int  # instances that both finished
    by_env: Mapping[str, Paired] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"mean": self.mean, "ci95": list(self.ci95), "episodes": self.episodes}
        return plain | ({"by_env": {n: p.to_json() for n, p in self.by_env.items()}} if self.by_env else {})


def paired(better: EvalResult, worse: EvalResult) -> Paired:
    """`better` minus `worse` with a 95 % interval: normal approximation of the mean of paired differences."""
    left = {o.key: o for o in better.outcomes}
    both = [(left[o.key], o) for o in worse.outcomes if o.key in left]
    per_env: dict[str, list[float]] = {}
    for a, b in both:
        per_env.setdefault(a.env, []).append(float(a.success) - float(b.success))
    parts = {name: _paired(values) for name, values in per_env.items()}
    whole = _paired([value for values in per_env.values() for value in values])
    return Paired(whole.mean, whole.ci95, whole.episodes, parts)


def _paired(differences: Sequence[float]) -> Paired:
    count = len(differences)
    if count == 0:
        return Paired(0.0, (-1.0, 1.0), 0)
    values = np.array(differences)
    mean = float(values.mean())
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 1.0
    return Paired(mean, (max(-1.0, mean - half), min(1.0, mean + half)), count)


def eval_requests(
    choices: Sequence[EnvChoice], split: str, episodes: int, *, stage: str, step: int, sampling: SamplingParams
) -> list[GroupRequest]:
    """One group of one per instance: the first instances of the split, as evenly over environments as they go.
    A split with fewer instances is played once through."""
    requests: list[GroupRequest] = []
    for place, choice in enumerate(choices):
        share = episodes // len(choices) + (place < episodes % len(choices))
        for row in range(min(share, choice.spec.size(split))):
            instance = choice.spec.instance(split, row, dict(choice.setting))
            requests.append(
                GroupRequest(
                    env=choice.spec.id,
                    instance=instance,
                    size=1,
                    stage=stage,
                    step=step,
                    index=len(requests),
                    seats=choice.seats,
                    sampling=sampling,
                    split=split,
                    seed_key=("eval", instance.hash),
                )
            )
    return requests


async def evaluate(
    rollouts: Rollouts,
    choices: Sequence[EnvChoice],
    split: str,
    episodes: int,
    policy: str,
    *,
    sampling: SamplingParams,
    stage: str = "eval",
    step: int = 0,
    progress: Callable[[Episode], None] | None = None,
) -> EvalResult:
    """Play and count. Success is that of the seats that `policy` sits in; in self-play each of them counts.

    Sampling seeds depend on the run's seed and the instance alone, so that policies are compared under common random
    numbers and a later evaluation of the same weights gives the same figures. `stage` and `step` only name the slots.
    Raises: ValueError where `policy` sits nowhere; RunHaltedError.
    """
    if any(policy not in c.seats.values() for c in choices):
        raise ValueError(f"policy {policy!r} sits in no seat of {[c.spec.id for c in choices]}")
    requests = eval_requests(choices, split, episodes, stage=stage, step=step, sampling=sampling)
    groups = await rollouts.run(requests, progress)
    return tally(groups, split, policy)


def tally(groups: Iterable[Group], split: str, policy: str) -> EvalResult:
    """Count played groups."""
    result = EvalResult(split, policy)
    for episode in (e for group in groups for e in group.episodes):
        if not episode.ok:
            result.not_ok[episode.stop] = result.not_ok.get(episode.stop, 0) + 1
            continue
        for seat, version in episode.seats.items():
            if version.policy == policy:
                result.outcomes.append(
                    Outcome(
                        env=episode.env,
                        key=f"{episode.env}/{episode.instance_hash}/{episode.member}/{seat}",
                        success=episode.success[seat],
                        reward=episode.reward[seat],
                        turns=sum(s.seat == seat for s in episode.steps),
                        stop=episode.stop,
                        malformed=episode.malformed,
                    )
                )
    return result
