"""Folders that were made for something which then came to nothing."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path


def missing(folder: Path) -> list[Path]:
    """It and those above it that are not there, the innermost first: what making it will make."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_made(made: list[Path]) -> None:
    """Remove what `missing` said: the folder with all that is in it, and those above that hold nothing else."""
    if made:
        shutil.rmtree(made[0])
    with suppress(OSError):  # somebody else uses one meanwhile
        for place in made[1:]:
            place.rmdir()
