"""transition.latency_s: calls take time on the episode's virtual clock. No one waits, and wall-clock time never counts."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from envfarm.perturbation.base import Channel

SPREAD = 0.5
"""Sigma of the lognormal around the instance's median."""


class Latency(Channel):
    """`value` is the median of a call's latency in virtual seconds."""

    key: ClassVar[str] = "transition.latency_s"

    @classmethod
    def check(cls, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value >= 0 and math.isfinite(value)):
            return f"a median in seconds, 0 or more, not {value!r}"
        return None

    def elapse(self, turn: int) -> float:
        seconds = round(float(self.value * self.draws.at(turn).lognormal(0.0, SPREAD)), 6)
        self.record(turn=turn, seconds=seconds)
        return seconds
