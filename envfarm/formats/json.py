"""JSON: one array of objects, one object per block, on one line each."""

from __future__ import annotations

from json import dumps
from typing import Any

from envfarm.blocks import Block, Blocks, Code, Fields, Image, Output, Table, Text
from envfarm.formats.joining import Piece, join


def write(blocks: Blocks) -> tuple[str, tuple[tuple[int, int], ...]]:
    """`[` and `]` around the objects, each on its own line."""
    return join(map(_block, blocks), ",\n", before="[", after="]")


def _block(block: Block) -> Piece:
    if isinstance(block, Output):
        body = dumps(block.text, ensure_ascii=False)
        return f'{{"output": {body}}}', (12, 10 + len(body))
    return dumps(_value(block), ensure_ascii=False), None


def _value(block: Block) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"text": block.text}
    if isinstance(block, Code):
        return {**({"title": block.title} if block.title else {}), "language": block.language, "code": block.code}
    if isinstance(block, Fields):
        return {**({"title": block.title} if block.title else {}), **_unique(block.fields)}
    if isinstance(block, Table):
        rows = [dict(_unique(tuple(zip(block.columns, r, strict=True)))) for r in block.rows]
        return {**({"title": block.title} if block.title else {}), "rows": rows}
    assert isinstance(block, Image)
    return {"image": block.description}


def _unique(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Pairs as an object; a name that comes twice gets a number, so that nothing is lost."""
    out: dict[str, str] = {}
    for name, value in pairs:
        key, n = name, 2
        while key in out:
            key, n = f"{name} ({n})", n + 1
        out[key] = value
    return out
