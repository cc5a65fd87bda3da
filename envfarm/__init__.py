"""envfarm: running, randomized, sandboxed environments for language-model agents. Knows no model.

    import envfarm, gymnasium

    env = gymnasium.make("coding/repair-v0")       # any shipped environment, as text
    text, info = env.reset(seed=7)
    text, reward, terminated, truncated, info = env.step("ls")

Importing this package is cheap: names below are looked up when they are used, and the environments' ids are registered
with Gymnasium when Gymnasium itself is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from envfarm.gym_ids import register_when_imported

if TYPE_CHECKING:
    from envfarm.aec import AECEnv
    from envfarm.blocks import Code, Fields, Image, Output, Table, Text
    from envfarm.env import Env
    from envfarm.randomization import sample
    from envfarm.registry import Registry, default_registry, make, make_scene
    from envfarm.session import local_session
    from envfarm.spec import EnvSpec, Instance, load_spec
    from envfarm.tools import ToolCall, ToolError, tool

__version__ = "0.1.0"

_WHERE = {
    "envfarm.aec": ("AECEnv",),
    "envfarm.blocks": ("Code", "Fields", "Image", "Output", "Table", "Text"),
    "envfarm.env": ("Env",),
    "envfarm.randomization": ("sample",),
    "envfarm.registry": ("Registry", "default_registry", "make", "make_scene"),
    "envfarm.session": ("local_session",),
    "envfarm.spec": ("EnvSpec", "Instance", "load_spec"),
    "envfarm.tools": ("ToolCall", "ToolError", "tool"),
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "AECEnv", "Code", "Env", "EnvSpec", "Fields", "Image", "Instance", "Output", "Registry", "Table", "Text", "ToolCall",
    "ToolError", "default_registry", "load_spec", "local_session", "make", "make_scene", "sample", "tool",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'envfarm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_when_imported()
