"""What the writers share: join the blocks' texts and keep track of where command output came to stand."""

from __future__ import annotations

from collections.abc import Iterable

Piece = tuple[str, tuple[int, int] | None]
"""The text of one block, and the range within it that a command printed."""


def join(
    pieces: Iterable[Piece], separator: str, *, before: str = "", after: str = ""
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The whole text, and the ranges in terms of it."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length = len(before)
    for text, span in pieces:
        if parts:
            length += len(separator)
        if span is not None:
            spans.append((length + span[0], length + span[1]))
        parts.append(text)
        length += len(text)
    return before + separator.join(parts) + after, tuple(spans)
