"""Environments without Python: a `task:` in YAML becomes a scene with stock tools, an oracle and a check."""

from __future__ import annotations

from envfarm.task.env import TaskEnv
from envfarm.task.stock import STOCK, task_class

__all__ = ["STOCK", "TaskEnv", "task_class"]
