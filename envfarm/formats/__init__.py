"""How blocks are written as text: one file per format, chosen by the `observation.format` channel, plain by default.

A writer is `write(blocks) -> (text, spans)`; `spans` are the [start, end) ranges of `text` that came out of `Output`
blocks, so that replay can compare them under the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from envfarm.blocks import Blocks
from envfarm.formats.plain import write as write_plain

Written = tuple[str, tuple[tuple[int, int], ...]]
Writer = Callable[[Blocks], Written]

FORMATS = ("plain", "markdown", "json", "xml")


def writer(name: str) -> Writer:
    """The writer of a format. Raises: KeyError for an unknown one."""
    if name not in FORMATS:
        raise KeyError(name)
    return import_module(f"envfarm.formats.{name}").write


__all__ = ["FORMATS", "Writer", "Written", "write_plain", "writer"]
