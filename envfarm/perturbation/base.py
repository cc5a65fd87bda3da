"""What a channel may do. Every hook has a neutral default, so a channel overrides only its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from envfarm.blocks import Blocks
from envfarm.seeding import generator
from envfarm.tools import ToolCall, ToolSpec

Tools = Mapping[str, ToolSpec]


class Draws:
    """Generators for one channel of one instance, keyed by what they are for."""

    def __init__(self, instance_hash: str, channel: str):
        self._names = ("perturb", instance_hash, channel)

    def at(self, *key: str | int) -> np.random.Generator:
        """The stream for `key` (say a turn): independent of every other key and of how often it is asked for."""
        return generator(*self._names, *key)


class Channel:
    """One channel of one episode. `value` is the instance's draw; `check` says which values make sense."""

    key: ClassVar[str]

    def __init__(self, value: Any, draws: Draws):
        self.value, self.draws = value, draws
        self.events: list[dict[str, Any]] = []

    @classmethod
    def check(cls, value: Any) -> str | None:
        """What is wrong with `value` as this channel's value (what was expected), or None."""
        return None

    def record(self, **event: Any) -> None:
        self.events.append({"channel": self.key, **event})

    def show_tools(self, tools: Tools) -> Tools:
        """The tools as the agent sees them, in terms of those below."""
        return tools

    def from_agent(self, call: ToolCall) -> ToolCall:
        """The agent's call, translated to the terms below."""
        return call

    def to_agent(self, call: ToolCall) -> ToolCall:
        """A call from below (the oracle's), in the agent's terms."""
        return call

    def intercept(self, call: ToolCall, turn: int) -> Blocks | None:
        """Blocks that are shown *instead of* running the call, or None to run it."""
        return None

    def elapse(self, turn: int) -> float:
        """Virtual seconds that this call takes on top."""
        return 0.0

    def observe(self, blocks: Blocks, turn: int) -> Blocks:
        """The observation, changed. Never inside what is exact."""
        return blocks

    def reward(self, components: dict[str, dict[str, float]], turn: int, over: bool) -> dict[str, dict[str, float]]:
        """Rewards per role and component that are handed out now. Nothing may be lost by the end."""
        return components


def check_rate(value: Any) -> str | None:
    """For channels whose value is a probability."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        return f"a rate between 0 and 1, not {value!r}"
    return None


def check_flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"true or false (use bernoulli), not {value!r}"
