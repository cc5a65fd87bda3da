"""A lamp with two dials. Every tool shape that perturbation channels care about, and nothing else."""

from __future__ import annotations

from typing import Literal

from envfarm.blocks import Fields, Text
from envfarm.env import Env, Observed
from envfarm.tools import Action, ToolCall, ToolError, tool

Colour = Literal["red", "green", "blue", "white"]


class Lamp(Env):
    forkable = True

    def start(self) -> Observed:
        self.colour, self.level = "", 0
        p = self.params
        goal = Text(f"Lamp {p['serial']} in the {p['room']}: {p['colour']} at level {p['level']}, then on.", exact=True)
        return goal, Fields((("colour", "none"), ("level", "0")), title="Lamp")

    @tool
    def adjust(self, colour: Colour, level: int) -> Observed:
        """Set both dials.

        colour: the new colour
        level: 0 to 9
        """
        if not 0 <= level <= 9:
            raise ToolError("The level goes from 0 to 9.")
        self.colour, self.level = colour, level
        return Fields((("colour", colour), ("level", str(level))), title="Lamp")

    @tool
    def note(self, text: str) -> str:
        """Write something on the label.

        text: what to write
        """
        return f"The label reads: {text}"

    @tool
    def switch(self) -> str:
        """Switch the lamp on; this ends the episode."""
        right = (self.colour, self.level) == (self.params["colour"], self.params["level"])
        self.reward(0.25 * (self.colour == self.params["colour"]), component="colour")
        self.end(1.0 if right else 0.0)
        return "The lamp shines."

    def oracle(self) -> Action:
        if (self.colour, self.level) != (self.params["colour"], self.params["level"]):
            return ToolCall("adjust", {"colour": self.params["colour"], "level": self.params["level"]})
        return ToolCall("switch")
