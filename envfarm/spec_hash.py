"""What an environment's hash covers: the YAML's meaning, and the code and data of its folder.

Comments and layout of the YAML do not count, nor do caches, hidden files, or the other environments' YAML that may
stand in the same folder. Paths are relative, so the hash is the same wherever the folder lies.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
_SKIPPED_SUFFIXES = (".pyc", ".pyo", "~", ".swp")
SPEC_HEADER = re.compile(r"^envfarm:[ \t]*\d", re.MULTILINE)
SPEC_ID = re.compile(r"""^id:[ \t]*(["']?)([^"'#\s]+)\1""", re.MULTILINE)


def folder_files(folder: Path) -> Iterator[Path]:
    """Files that belong to an environment, sorted by relative path. Links to folders are not followed."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith(".")]
        found.extend(Path(root, f) for f in files if not f.startswith(".") and not f.endswith(_SKIPPED_SUFFIXES))
    yield from sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def declared_id(path: Path) -> str | None:
    """The id that a YAML file declares, by a quick look; None where it is no environment."""
    try:
        text = path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return None
    found = SPEC_ID.search(text)
    return found[2] if found and SPEC_HEADER.search(text) else None


def hash_folder(folder: Path) -> str:
    """SHA-256 over the relative paths and contents of a folder's files, environments' YAML excepted."""
    digest = hashlib.sha256()
    for path in folder_files(folder):
        if path.suffix in (".yaml", ".yml") and declared_id(path) is not None:
            continue
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
