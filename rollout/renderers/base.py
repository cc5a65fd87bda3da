"""Messages to tokens and back. A renderer belongs to a template family; one file each.

Only new suffixes are tokenized: `render_message` gives the tokens of one message, to be appended to what is there.
Tokens of earlier turns are never made again. Where a template would rewrite history (thinking blocks dropped from
earlier assistant turns), `rewrites(messages)` says which message would now read differently, and the episode forks
a branch there, counted as drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rollout.types import Message


class Tokenizer(Protocol):
    """The part of a tokenizer that renderers use. Thin wrappers exist over `tokenizers` and Hugging Face folders."""

    vocab_size: int
    hash: str  # of the vocabulary and merges; goes into the store's manifest

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: special tokens written in it are *not* recognised (no injection)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...

    def special(self, token: str) -> int:
        """The id of a special token. Raises: KeyError naming it."""
        ...


class Renderer(Protocol):
    name: str
    template_hash: str
    stop_ids: tuple[int, ...]

    def render_message(self, message: Message, index: int, *, tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Tokens of one whole message that no policy sampled, e.g. `<|im_start|>user\\n...<|im_end|>\\n`.
        `index` is its place in the conversation; `tools` (JSON schemas) are written into the first message, if at all."""
        ...

    def generation_prompt(self) -> list[int]:
        """Tokens that open an assistant turn, e.g. `<|im_start|>assistant\\n`; never trained."""
        ...

    def close(self, sampled: Sequence[int]) -> list[int]:
        """Tokens the template puts after a sampled reply (whose stop token may be missing), e.g. `\\n`; never trained."""
        ...

    def parse(self, sampled: Sequence[int]) -> tuple[Message, bool]:
        """The assistant message that a reply spells, and whether it is well formed (a tool call that is not JSON,
        or a missing stop token, is not). Never raises."""
        ...

    def rewrites(self, messages: Sequence[Message]) -> list[int]:
        """Indices of messages that would be rendered differently, now that a new user turn follows; empty for most."""
        ...

    def rewritten(self, message: Message) -> Message:
        """The message as the template shows it in history."""
        ...


RENDERERS: dict[str, str] = {
    "compact": "rollout.renderers.compact:CompactRenderer",
    "chatml": "rollout.renderers.chatml:ChatMLRenderer",
    "chatml-text": "rollout.renderers.chatml:ChatMLTextRenderer",
    "thinking": "rollout.renderers.thinking:ThinkingRenderer",
}
