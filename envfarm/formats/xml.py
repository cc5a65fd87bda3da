"""XML: one element per block, well formed."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from envfarm.blocks import Block, Blocks, Code, Fields, Image, Output, Table, Text
from envfarm.formats.joining import Piece, join


def write(blocks: Blocks) -> tuple[str, tuple[tuple[int, int], ...]]:
    """`<observation>` around the elements, each on a line of its own."""
    return join(map(_block, blocks), "\n", before="<observation>\n", after="\n</observation>")


def _title(title: str) -> str:
    return f" title={quoteattr(title)}" if title else ""


def _block(block: Block) -> Piece:
    if isinstance(block, Text):
        return f"<text>{escape(block.text)}</text>", None
    if isinstance(block, Output):
        body = escape(block.text.rstrip("\n"))
        return f"<output>{body}</output>", (8, 8 + len(body))
    if isinstance(block, Code):
        body = escape(block.code.rstrip("\n"))
        return f"<code language={quoteattr(block.language)}{_title(block.title)}>{body}</code>", None
    if isinstance(block, Fields):
        lines = [f"  <field name={quoteattr(k)}>{escape(v)}</field>" for k, v in block.fields]
        return "\n".join([f"<fields{_title(block.title)}>", *lines, "</fields>"]), None
    if isinstance(block, Table):
        rows = [
            "  <row>"
            + "".join(f"<cell name={quoteattr(c)}>{escape(v)}</cell>" for c, v in zip(block.columns, r, strict=True))
            + "</row>"
            for r in block.rows
        ]
        return "\n".join([f"<table{_title(block.title)}>", *rows, "</table>"]), None
    assert isinstance(block, Image)
    return f"<image>{escape(block.description)}</image>", None
