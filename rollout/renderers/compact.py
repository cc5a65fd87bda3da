"""For tiny models: two markers and an end, no system prompt, no tool descriptions.

    <|obs|>what the world shows<|act|>what the policy does<|end|>

An action is text (`envfarm.tools.parse_text` reads it); a call without text is written as the JSON it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from envfarm.seeding import stable_hash
from rollout.renderers.base import Tokenizer
from rollout.renderers.pieces import call_json, need_special
from rollout.types import Message


class CompactRenderer:
    name = "compact"
    template_hash = stable_hash(["compact", 1, "<|obs|>{content}", "<|act|>{content}<|end|>"])

    def __init__(self, tokenizer: Tokenizer):
        """Raises: UserError where the tokenizer lacks a marker."""
        self.tokenizer = tokenizer
        self._obs, self._act, self._end = need_special(self.name, tokenizer, "<|obs|>", "<|act|>", "<|end|>")
        self._special = frozenset((self._obs, self._act, self._end))
        self.stop_ids: tuple[int, ...] = (self._end,)

    def render_message(self, message: Message, index: int, *, tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        if message.role == "system":
            return []
        if message.role == "assistant":
            return [*self.generation_prompt(), *self.render_reply(message)]
        return [self._obs, *self.tokenizer.encode(message.content)]

    def render_reply(self, message: Message) -> list[int]:
        """What a policy would have sampled to say `message`, stop token included."""
        text = message.content or "\n".join(json.dumps(call_json(c), ensure_ascii=False) for c in message.tool_calls)
        return [*self.tokenizer.encode(text), self._end]

    def generation_prompt(self) -> list[int]:
        return [self._act]

    def close(self, sampled: Sequence[int]) -> list[int]:
        return [] if sampled and sampled[-1] == self._end else [self._end]

    def parse(self, sampled: Sequence[int]) -> tuple[Message, bool]:
        ended = bool(sampled) and sampled[-1] == self._end
        body = sampled[:-1] if ended else sampled
        clean = self._special.isdisjoint(body)
        return Message(role="assistant", content=self.tokenizer.decode(body)), ended and clean

    def rewrites(self, messages: Sequence[Message]) -> list[int]:
        return []

    def rewritten(self, message: Message) -> Message:
        return message
