"""A maze that is seen only in part: from a cell its exits, along the corridors, or a small square around.

The agent has `budget` actions, twice the shortest way and three more: who wanders fails. Reaching the goal brings
1.0 by the shortest way and less by every detour, never below 0.6; anything else brings 0.
Locked doors have keys that lie elsewhere; the goal is behind the first door, the first key behind the second.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from envfarm.blocks import Block, Code, Fields, Text
from envfarm.env import Env
from envfarm.tools import Action, ToolCall, tool

from .carve import lay_out
from .grid import STEPS, beyond
from .views import WORDS, compass, exits, sight, torn_map, window

TORN_SHARE = 0.25
LEAST_REWARD = 0.6
LEGEND = "# wall, . way, @ you, G goal; small letters keys, capital letters doors."


class Maze(Env):
    forkable = True

    def start(self) -> list[Block]:
        p = self.params
        self.grid, self.cell, self.goal = lay_out(
            p["width"], p["height"], p["carve"], p["loops"], p["reach"], p.get("doors", 0), self.rng
        )
        self.words, self.held, self.used = WORDS[p["theme"]], frozenset[str](), 0
        self.shortest = len(self.grid.route(self.cell, self.held, self.goal))
        self.budget = self.turn_limit = 2 * self.shortest + 3  # what is no action costs time, too
        if not self.grid.keys:
            del self.tools["take"]
        blocks: list[Block] = [Text(self._introduction())]
        if p["map"] == "torn":
            blocks.append(
                Code(
                    torn_map(self.grid, self.cell, self.goal, TORN_SHARE, self.rng),
                    title="torn map (# wall, . way, @ you, G goal, ? torn off)",
                )
            )
        return [*blocks, *self._seen()]

    @tool
    def move(self, direction: Literal["north", "south", "east", "west"]) -> list[Block]:
        """Go one step.

        direction: where to
        """
        lock = self.grid.doors.get((self.cell, direction))
        if direction not in self.grid.passages[self.cell]:
            return self._spent("A wall.")
        if lock is not None and lock not in self.held:
            return self._spent(f"The {lock} door is locked.")
        self.cell = beyond(self.cell, direction)
        return self._spent()

    @tool
    def take(self) -> list[Block]:
        """Pick up the key that lies here."""
        key = self._keys_left().get(self.cell)
        if key is None:
            return self._spent("No key here.")
        self.held |= {key}
        return self._spent()

    def oracle(self) -> Action:
        action = self.grid.route(self.cell, self.held, self.goal)[0]
        return ToolCall("take") if action == "take" else ToolCall("move", {"direction": action})

    def random_action(self, rng: np.random.Generator) -> Action:
        choices = [*STEPS, *(["take"] if "take" in self.tools else [])]
        action = choices[int(rng.integers(len(choices)))]
        return ToolCall("take") if action == "take" else ToolCall("move", {"direction": action})

    def _spent(self, remark: str = "") -> list[Block]:
        """One action of the budget is gone: what is seen now, unless it is over."""
        self.used += 1
        if self.cell == self.goal:
            waste = (self.used - self.shortest) / (self.budget - self.shortest)
            self.end(1.0 - (1.0 - LEAST_REWARD) * waste)
            return [Text(f"The {self.words['goal']}!")]
        if self.used >= self.budget:
            self.end(0.0)
            return [Text("Too late.")]
        return [*([Text(remark)] if remark else []), *self._seen()]

    def _keys_left(self) -> dict:
        return {cell: key for cell, key in self.grid.keys.items() if key not in self.held}

    def _introduction(self) -> str:
        if self.params["theme"] == "plain":
            return f"Reach the {self.words['goal']}."
        size = f"{self.grid.width} by {self.grid.height}"
        text = f"A {self.words['place']}, {size}. Find the {self.words['goal']} within {self.budget} actions."
        return f"{text} {LEGEND}" if self.params["view"] == "window" else text

    def _seen(self) -> list[Block]:
        keys, view = self._keys_left(), self.params["view"]
        bearing = compass(self.params["compass"], self.cell, self.goal)
        pairs = [(self.words["goal"], bearing)] if bearing else []
        if view != "window":
            look = exits if view == "cell" else sight
            pairs += look(self.grid, self.cell, keys, self.goal, self.words)
        if self.cell in keys:
            pairs.append(("here", f"{keys[self.cell]} key"))
        if self.held:
            pairs.append(("keys", " ".join(sorted(self.held))))
        blocks: list[Block] = [Fields(tuple(pairs))] if pairs else []
        return blocks if view != "window" else [Code(window(self.grid, self.cell, keys, self.goal)), *blocks]
