"""Observations are typed blocks; text comes late.

An environment hands out blocks, the perturbation channels may reorder, reformat or surround them, and a format
(`envfarm.formats`) writes them down. What must reach the agent to the letter is marked: a block with `exact=True`
is never touched inside; a `Text` block may mark spans of it.

Blocks are msgspec structs with a tag, so they travel as JSON or MessagePack and come back as the same types.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Text(msgspec.Struct, tag="text", frozen=True):
    """Prose. `exact_spans` are half-open `[start, end)` character ranges that no channel may change."""

    text: str
    exact: bool = False
    exact_spans: tuple[tuple[int, int], ...] = ()


class Fields(msgspec.Struct, tag="fields", frozen=True):
    """Named values, in order: `title`, then `name: value` pairs."""

    fields: tuple[tuple[str, str], ...]
    title: str = ""
    exact: bool = False


class Table(msgspec.Struct, tag="table", frozen=True):
    """A table: every row has as many cells as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    exact: bool = False


class Code(msgspec.Struct, tag="code", frozen=True):
    """Program text; always exact inside."""

    code: str
    language: str = ""
    title: str = ""
    exact: bool = True


class Output(msgspec.Struct, tag="output", frozen=True):
    """What a command in a box printed: exact, and compared under the documented mask in replay and identity."""

    text: str
    exact: bool = True


class Image(msgspec.Struct, tag="image", frozen=True):
    """A PNG image with a description for engines that see only text."""

    png: bytes
    description: str
    exact: bool = True


Block = Text | Fields | Table | Code | Output | Image
Blocks = tuple[Block, ...]


def as_blocks(value: str | Block | Sequence[Block]) -> Blocks:
    """What an author may return from a tool or `start`: a string becomes one `Text` block.

    Raises: TypeError for what is neither text, a block, nor a sequence of blocks."""
    if isinstance(value, str):
        return (Text(value),) if value else ()
    if isinstance(value, Block):
        return (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, Block) for part in value):
        raise TypeError(f"expected text, a block or a list of blocks to show, found {value!r:.80}")
    return tuple(value)
