"""Imported before all else here: is Ray there? If not, one error says what installs it."""

from __future__ import annotations

import os

from envfarm.errors import MissingDependencyError

# Read once, when Ray is imported: it would tell of dead actors on standard output, which may be somebody's JSON.
_ours = os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".") == "."
try:
    import ray  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "ray":
        raise
    raise MissingDependencyError("`ray:` needs Ray, which is not installed. Install it: pip install 'envfarm[ray]'") from None
finally:
    if _ours:
        del os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"]
