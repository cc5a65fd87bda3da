"""A thinking template in the manner of Qwen3: replies may open with a `<think>` block, and once a new user turn
follows, the blocks of earlier replies are no longer shown. So history is rewritten, and episodes fork there.

Results of tools come back as user turns between `<tool_response>` tags; they are no new user turn, a chain of calls
keeps its thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from envfarm.seeding import stable_hash
from rollout.renderers.chatml import ChatMLRenderer
from rollout.renderers.pieces import describe_tools
from rollout.types import Message

THINK, THOUGHT = "<think>", "</think>"


class ThinkingRenderer(ChatMLRenderer):
    name = "thinking"
    template_hash = stable_hash(["thinking", 1, "<think>\n{thinking}\n</think>\n\n{content}", describe_tools([])])

    def _shown(self, message: Message) -> list[int]:
        if message.role == "tool":
            return self._turn("user", f"<tool_response>\n{message.content}\n</tool_response>")
        return super()._shown(message)

    def _write(self, message: Message) -> str:
        said = super()._write(message)
        return f"{THINK}\n{message.thinking}\n{THOUGHT}\n\n{said}" if message.thinking else said

    def _read(self, text: str) -> tuple[Message, bool]:
        thinking, closed = "", True
        if text.startswith(THINK):
            block, tag, rest = text.removeprefix(THINK).partition(THOUGHT)
            closed = bool(tag)
            thinking = block.removeprefix("\n").removesuffix("\n")
            text = rest.removeprefix("\n").removeprefix("\n")
        message, readable = super()._read(text)
        return msgspec.structs.replace(message, thinking=thinking), readable and closed

    def rewrites(self, messages: Sequence[Message]) -> list[int]:
        return [i for i, message in enumerate(messages) if message.role == "assistant" and message.thinking]

    def rewritten(self, message: Message) -> Message:
        return msgspec.structs.replace(message, thinking="")
