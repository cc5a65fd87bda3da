"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """The user's cache directory, as of the XDG specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache_dir() -> Path:
    """Where envfarm keeps what it can make again: ENVFARM_CACHE, else `envfarm` in the user's cache directory."""
    own = os.environ.get("ENVFARM_CACHE")
    return Path(own) if own else user_cache() / "envfarm"
