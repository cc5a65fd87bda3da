"""transition.tool_error: now and then a call does not happen and says so; trying again works."""

from __future__ import annotations

from typing import Any, ClassVar

from envfarm.blocks import Blocks, Text
from envfarm.perturbation.base import Channel, check_rate
from envfarm.tools import ToolCall

MESSAGES = (
    "Error: the tool is temporarily unavailable. Nothing was done; try again.",
    "Error: the connection was reset before the action was carried out. Try again.",
    "Error: too many requests. The action was not carried out; try again.",
)


class ToolError(Channel):
    """`value` is the chance per call."""

    key: ClassVar[str] = "transition.tool_error"

    @classmethod
    def check(cls, value: Any) -> str | None:
        return check_rate(value)

    def intercept(self, call: ToolCall, turn: int) -> Blocks | None:
        rng = self.draws.at(turn)
        hit, which = rng.random() < self.value, int(rng.integers(len(MESSAGES)))
        if not hit:
            return None
        self.record(turn=turn, tool=call.name, message=which)
        return (Text(MESSAGES[which]),)
