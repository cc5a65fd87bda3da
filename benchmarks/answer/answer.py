"""One question, one answer."""

from __future__ import annotations

from envfarm.env import Env
from envfarm.tools import Action, ToolCall, tool


class Answer(Env):
    text_tool = "answer"

    def start(self) -> str:
        return f"Answer with the number {self.params['number']}."

    @tool
    def answer(self, text: str) -> str:
        """Give the answer.

        text: the number
        """
        self.end(1.0 if text == str(self.params["number"]) else 0.0)
        return ""

    def oracle(self) -> Action:
        return ToolCall("answer", {"text": str(self.params["number"])})
