"""Markdown: headings, lists, tables and fenced code."""

from __future__ import annotations

import re

from envfarm.blocks import Block, Blocks, Code, Fields, Image, Output, Table, Text
from envfarm.formats.joining import Piece, join


def write(blocks: Blocks) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Blocks with an empty line between them."""
    return join((p for p in map(_block, blocks) if p[0]), "\n\n")


def _fenced(body: str, language: str) -> tuple[str, int]:
    """The fenced text (its fence longer than any run of backticks inside) and where `body` starts in it."""
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    head = f"{fence}{language}\n"
    return f"{head}{body}\n{fence}", len(head)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def _block(block: Block) -> Piece:
    if isinstance(block, Text):
        return block.text, None
    if isinstance(block, Output):
        body = block.text.rstrip("\n")
        text, start = _fenced(body, "")
        return text, (start, start + len(body))
    if isinstance(block, Code):
        text, _ = _fenced(block.code.rstrip("\n"), block.language)
        return (f"**{block.title}**\n\n" if block.title else "") + text, None
    title = f"### {block.title}\n\n" if isinstance(block, (Fields, Table)) and block.title else ""
    if isinstance(block, Fields):
        return title + "\n".join(f"- **{k}**: {v}" for k, v in block.fields), None
    if isinstance(block, Table):
        head = "| " + " | ".join(map(_cell, block.columns)) + " |\n|" + " --- |" * len(block.columns)
        return title + "\n".join([head, *("| " + " | ".join(map(_cell, r)) + " |" for r in block.rows)]), None
    assert isinstance(block, Image)
    return f"![{block.description}](image)", None
