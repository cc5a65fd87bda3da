"""A peer's own environment: made once with uv, in `peers` below envfarm's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from envfarm.caches import cache_dir


def peer_python(name: str, packages: tuple[str, ...]) -> Path:
    """The interpreter of the environment `name`, which holds `packages`; an interrupted installation is made anew."""
    folder = cache_dir() / "peers" / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        print(f"installing {', '.join(packages)} for the comparison, once", file=sys.stderr)
        uv = Path(sys.executable).with_name("uv")
        links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages], check=True, env=os.environ | links)
        ready.write_text("\n".join(packages))
    return python
