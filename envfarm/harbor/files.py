"""Files of a task's folder that go into boxes."""

from __future__ import annotations

import os
from pathlib import Path

from envfarm.errors import Location, SpecError
from envfarm.spec_hash import folder_files


def files_below(folder: Path) -> dict[str, Path]:
    """Relative path -> file. Raises: SpecError for one that an environment's bundle would leave behind, and for a link that
    leaves the folder."""
    found = {path.relative_to(folder).as_posix(): path for path in folder_files(folder)}
    for root, folders, names in os.walk(folder):
        for name in sorted([*names, *(f for f in folders if Path(root, f).is_symlink())]):
            path = Path(root, name)
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise SpecError(f"a link that leaves {folder}", Location(str(path), 1, 1))
            if path.relative_to(folder).as_posix() not in found and "__pycache__" not in path.parts and path.suffix != ".pyc":
                raise SpecError("hidden files, backups and links to folders do not travel: rename it", Location(str(path), 1, 1))
    return found


def mode_of(file: Path) -> int:
    return 0o755 if os.access(file, os.X_OK) else 0o644
