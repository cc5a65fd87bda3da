"""Plain text: short, for small models and people."""

from __future__ import annotations

from envfarm.blocks import Block, Blocks, Code, Fields, Image, Output, Table, Text
from envfarm.formats.joining import join


def write(blocks: Blocks) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Blocks below each other, one newline between them; empty ones leave nothing."""
    texts = [(b, _block(b)) for b in blocks]
    return join(((t, (0, len(t)) if isinstance(b, Output) else None) for b, t in texts if t), "\n")


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Output):
        return block.text.rstrip("\n")
    if isinstance(block, Fields):
        return "\n".join([*([block.title] if block.title else []), *(f"{k}: {v}" for k, v in block.fields)])
    if isinstance(block, Table):
        rows = [" | ".join(block.columns), *(" | ".join(r) for r in block.rows)]
        return "\n".join([*([block.title] if block.title else []), *rows])
    if isinstance(block, Code):
        return "\n".join([*([block.title + ":"] if block.title else []), block.code.rstrip("\n")])
    assert isinstance(block, Image)
    return f"[image: {block.description}]"
