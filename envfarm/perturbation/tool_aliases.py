"""action.tool_aliases: tools carry other names, and the visible tool list says so."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from envfarm.perturbation.base import Channel, Draws, Tools, check_flag
from envfarm.tools import ToolCall

SYNONYMS: dict[str, tuple[str, ...]] = {
    "move": ("go", "walk", "step"),
    "open": ("visit", "load", "goto"),
    "click": ("press", "tap", "follow"),
    "type": ("enter", "fill", "input"),
    "select": ("choose", "pick"),
    "submit": ("finish", "done", "hand_in"),
    "back": ("return", "previous"),
    "shell": ("bash", "run", "execute"),
    "read_file": ("cat_file", "show_file", "view"),
    "write_file": ("save_file", "put_file"),
    "list_files": ("dir", "tree"),
    "bet": ("raise", "wager"),
    "check": ("pass_turn", "hold"),
    "fold": ("drop", "give_up"),
    "call": ("match", "see"),
}


class ToolAliases(Channel):
    """With `value` true each tool gets another name: a synonym where one is known, else the name with a suffix."""

    key: ClassVar[str] = "action.tool_aliases"

    def __init__(self, value: Any, draws: Draws):
        super().__init__(value, draws)
        self._alias: dict[str, str] = {}
        self._name: dict[str, str] = {}

    @classmethod
    def check(cls, value: Any) -> str | None:
        return check_flag(value)

    def show_tools(self, tools: Tools) -> Tools:
        if not self.value:
            return tools
        for name in tools:
            if name not in self._alias:
                alias = self._choose(name, taken={*tools, *self._name})
                self._alias[name], self._name[alias] = alias, name
                self.record(tool=name, alias=alias)
        return {self._alias[n]: msgspec.structs.replace(t, name=self._alias[n]) for n, t in tools.items()}

    def _choose(self, name: str, taken: set[str]) -> str:
        rng = self.draws.at(name)
        free = [s for s in SYNONYMS.get(name, ()) if s not in taken]
        if free:
            return free[int(rng.integers(len(free)))]
        return next(f"{name}_{n}" for n in range(2, 2 + len(taken) + 1) if f"{name}_{n}" not in taken)

    def from_agent(self, call: ToolCall) -> ToolCall:
        return ToolCall(self._name.get(call.name, call.name), call.arguments) if self.value else call

    def to_agent(self, call: ToolCall) -> ToolCall:
        return ToolCall(self._alias.get(call.name, call.name), call.arguments) if self.value else call
