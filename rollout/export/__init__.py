"""Exporters by name, imported late. A new format costs one file and one line.

An exporter is `write(episodes, path) -> int`: it writes one file, whole or not at all, and says how many records it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path

from envfarm.errors import UserError, did_you_mean
from rollout.types import Episode

Exporter = Callable[[Iterable[Episode], Path], int]

EXPORTERS: dict[str, str] = {
    "jsonl": "rollout.export.jsonl:write",
}


def exporter(name: str) -> Exporter:
    """Raises: UserError for an unknown format."""
    if name not in EXPORTERS:
        raise UserError(f"no export format {name!r}{did_you_mean(name, EXPORTERS)}; there are: {', '.join(EXPORTERS)}")
    module, _, attribute = EXPORTERS[name].partition(":")
    return getattr(import_module(module), attribute)
