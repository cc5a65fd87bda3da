"""Two buttons, pressed twice; each right one is worth a half."""

from __future__ import annotations

from typing import Literal

from envfarm.env import Env
from envfarm.tools import Action, ToolCall, tool


class Buttons(Env):
    def start(self) -> str:
        self.pressed = 0
        return f"Press {self.params['first']}."

    @tool
    def press(self, button: Literal["left", "right"]) -> str:
        """Press it.

        button: which
        """
        wanted = self.params["first" if self.pressed == 0 else "second"]
        self.pressed += 1
        self.reward(0.5 * (button == wanted))
        if self.pressed == 2:
            self.end()
            return "Done."
        return f"Press {self.params['second']}."

    def oracle(self) -> Action:
        return ToolCall("press", {"button": self.params["first" if self.pressed == 0 else "second"]})
