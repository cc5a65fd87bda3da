"""reward.delay_turns: what an action earned is handed out some turns later, or at the end, whichever is first."""

from __future__ import annotations

from typing import Any, ClassVar

from envfarm.perturbation.base import Channel, Draws

Components = dict[str, dict[str, float]]


class RewardDelay(Channel):
    """`value` is the number of turns. The sum per role and component stays what it was."""

    key: ClassVar[str] = "reward.delay_turns"

    def __init__(self, value: Any, draws: Draws):
        super().__init__(value, draws)
        self._held: list[tuple[int, Components]] = []

    @classmethod
    def check(cls, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return f"a number of turns, 0 or more, not {value!r}"
        return None

    def reward(self, components: Components, turn: int, over: bool) -> Components:
        if components:
            self._held.append((turn + self.value, components))
            if self.value and not over:
                self.record(turn=turn, due=turn + self.value)
        due = [c for at, c in self._held if over or at <= turn]
        self._held = [] if over else [(at, c) for at, c in self._held if at > turn]
        total: Components = {}
        for held in due:
            for role, parts in held.items():
                mine = total.setdefault(role, {})
                for name, value in parts.items():
                    mine[name] = mine.get(name, 0.0) + value
        return total
