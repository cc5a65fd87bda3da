"""Environments to start from. The folders beside this file are working environments; `scaffold` copies one and names it.

`stockroom` (and `Stockroom`, the class) stand in for the new name.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from envfarm.errors import UserError

_PLACEHOLDER = "stockroom"


def scaffold(folder: Path, *, python: bool = True) -> Path:
    """Make the folder of a new environment and return its YAML file.

    Raises: UserError where the name cannot be one, or the folder exists and is not empty.
    """
    name = folder.resolve().name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} cannot name an environment: use small letters, digits and _, beginning with a letter")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name another folder")
    template = Path(__file__).parent / ("with_python" if python else "without_python")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(p for p in template.iterdir() if p.is_file()):
        target = folder / source.name.replace(_PLACEHOLDER, name)
        target.write_text(_named(source.read_text("utf-8"), name), "utf-8")
    return folder / f"{name}.yaml"


def _named(text: str, name: str) -> str:
    title = "".join(part.capitalize() for part in name.split("_"))
    return text.replace(_PLACEHOLDER.capitalize(), title).replace(_PLACEHOLDER, name)
