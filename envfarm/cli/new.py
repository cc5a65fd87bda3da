"""`envfarm new`: an environment to start from, in a folder of its own, outside the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    folder: Annotated[Path, typer.Argument(help="The folder to make; its name becomes the environment's.")],
    python: Annotated[bool, typer.Option("--python/--no-python", help="A Python class, or templates alone.")] = True,
) -> None:
    """Make a working environment: edit it, then `envfarm check FOLDER`."""
    from envfarm.scaffold import scaffold

    made = scaffold(folder, python=python)
    print(f"made {made}\n")
    for line in ("show", "play", "check"):
        print(f"  envfarm {line} {made}")
