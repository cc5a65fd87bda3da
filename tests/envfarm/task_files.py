"""Small environments without Python, written to a folder and loaded as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from envfarm.session import Session, Turn
from envfarm.spec import EnvSpec, load_spec

Opened = Callable[..., tuple[Session, Turn]]
"""What the fixture `opened` gives: a spec and actions -> the session that played them, and its last turn."""


def task_spec(
    folder: Path, *, limits: dict[str, Any] | None = None, reward: dict[str, Any] | None = None, **task: Any
) -> EnvSpec:
    """A spec with one axis, `size` in [1, 9], and a task of these keys."""
    keys = {"solution": "echo {{ size }} > out", "check": {"same_as_solution": ["/task"]}, **task}
    meaning = {
        "envfarm": 1,
        "id": "test/task-v0",
        "task": {k: v for k, v in keys.items() if v is not None},
        "randomize": {"size": {"uniform_int": [1, 9]}},
        "splits": {"train": {"seeds": {"start": 0, "count": 100}}},
        "sandbox": {"box": True, "memory": "64MiB", "pids": 16, "disk": "8MiB"},
        "limits": {"turns": 6, **(limits or {})},
        "reward": reward or {},
    }
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(meaning, sort_keys=False))
    return load_spec(path)
