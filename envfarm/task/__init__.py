"""Environments without Python: a `task:` in YAML becomes a scene with stock tools, an oracle and a check.

Light: a file is read and checked without the classes that play it.
"""

from __future__ import annotations

from envfarm.errors import did_you_mean

STOCK: dict[str, str] = {
    "shell": "envfarm.task.stock:Shell",
    "files": "envfarm.task.stock:Files",
}
"""Name in `task.tools` -> the class that has those tools."""

NOT_YET = ("sql", "browser")
"""Designed and not implemented: refused by name."""


def unknown_tool(name: str) -> str | None:
    """What is wrong with that name, or None."""
    if name in NOT_YET:
        return f"{name!r} is not implemented yet; there are {', '.join(STOCK)}"
    if name not in STOCK:
        return f"unknown {name!r}{did_you_mean(name, STOCK)}; there are {', '.join(STOCK)}"
    return None
