"""ChatML with native tool calls.

    <|im_start|>user\\nWhat is in the cart?<|im_end|>\\n<|im_start|>assistant\\n...<|im_end|>\\n

Tools are described in the system message (one is made where the conversation has none), calls are JSON between
`<tool_call>` tags, and results come back under the role `tool`. History is never rewritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envfarm.seeding import stable_hash
from rollout.renderers.base import Tokenizer
from rollout.renderers.pieces import describe_tools, need_special, read_calls, write_calls
from rollout.types import Message

START, END = "<|im_start|>", "<|im_end|>"


class ChatMLRenderer:
    name = "chatml"
    template_hash = stable_hash(["chatml", 1, START, END, describe_tools([])])

    def __init__(self, tokenizer: Tokenizer):
        """Raises: UserError where the tokenizer lacks the ChatML tokens."""
        self.tokenizer = tokenizer
        self._start, self._end = need_special(self.name, tokenizer, START, END)
        self.stop_ids: tuple[int, ...] = (self._end,)
        self._newline = tokenizer.encode("\n")

    def render_message(self, message: Message, index: int, *, tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        if message.role == "assistant":
            reply = self.render_reply(message)
            return [*self.generation_prompt(), *reply, *self.close(reply)]
        content = message.content
        if tools and message.role == "system":
            content = f"{content}\n\n{describe_tools(tools)}" if content else describe_tools(tools)
        elif tools:
            return self._turn("system", describe_tools(tools)) + self._shown(message)
        return self._turn("system", content) if message.role == "system" else self._shown(message)

    def _shown(self, message: Message) -> list[int]:
        """A message from the world."""
        return self._turn(message.role, message.content)

    def _turn(self, role: str, content: str) -> list[int]:
        return [self._start, *self.tokenizer.encode(f"{role}\n{content}"), self._end, *self._newline]

    def render_reply(self, message: Message) -> list[int]:
        """What a policy would have sampled to say `message`, stop token included."""
        return [*self.tokenizer.encode(self._write(message)), self._end]

    def _write(self, message: Message) -> str:
        if not message.tool_calls:
            return message.content
        calls = write_calls(message.tool_calls)
        return f"{message.content}\n{calls}" if message.content else calls

    def generation_prompt(self) -> list[int]:
        return [self._start, *self.tokenizer.encode("assistant\n")]

    def close(self, sampled: Sequence[int]) -> list[int]:
        ended = bool(sampled) and sampled[-1] == self._end
        return [*(() if ended else (self._end,)), *self._newline]

    def parse(self, sampled: Sequence[int]) -> tuple[Message, bool]:
        ended = bool(sampled) and sampled[-1] == self._end
        body = sampled[:-1] if ended else sampled
        clean = self._start not in body and self._end not in body
        message, readable = self._read(self.tokenizer.decode(body))
        return message, ended and clean and readable

    def _read(self, text: str) -> tuple[Message, bool]:
        content, calls, readable = read_calls(text)
        return Message(role="assistant", content=content, tool_calls=calls), readable

    def rewrites(self, messages: Sequence[Message]) -> list[int]:
        return []

    def rewritten(self, message: Message) -> Message:
        return message


class ChatMLTextRenderer(ChatMLRenderer):
    """ChatML for small models: the tools are not described (their JSON schemas would be most of what is read), actions are
    plain text, as `envfarm.tools.parse_text` reads them. What to do is in the observations, how to say it is learned."""

    name = "chatml-text"
    template_hash = stable_hash(["chatml-text", 1, START, END])

    def render_message(self, message: Message, index: int, *, tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        return super().render_message(message, index)
