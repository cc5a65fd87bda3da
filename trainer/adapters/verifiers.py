"""Our environments for verifiers, whichever of its two interfaces is installed.

    0.1: load_environment(env=...)                 trainer.adapters.verifiers_v0
    0.4: a Taskset with its Env and Harness        trainer.adapters.verifiers_v1

    python -m trainer.adapters.verifiers_package games/maze-v0 --output packages/games-maze

writes a package of that name which both interfaces find by its id, as they find the hub's.
"""

from __future__ import annotations

from importlib.metadata import version

from trainer.adapters.requirements import importing

_INSTALL = "pip install envfarm 'verifiers==0.4.0'"
"""Or 0.1.14. Never beside TRL (0.1 wants an older datasets) or openenv (0.4 wants another mcp)."""

with importing("verifiers", install=_INSTALL):
    import verifiers  # noqa: F401

    if tuple(int(part) for part in version("verifiers").split(".")[:2]) < (0, 2):
        from trainer.adapters.verifiers_v0 import load_environment

        __all__ = ["load_environment"]
    else:
        from trainer.adapters.verifiers_v1 import EnvfarmEnv, EnvfarmHarness, EnvfarmTaskset, taskset_for

        __all__ = ["EnvfarmEnv", "EnvfarmHarness", "EnvfarmTaskset", "taskset_for"]
