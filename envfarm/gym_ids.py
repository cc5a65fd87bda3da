"""`gymnasium.make("coding/repair-v0")` after `import envfarm`, without importing Gymnasium for those who do not use it.

Gymnasium has no plug-in hook of its own, and importing it costs more than everything else that the command line needs.
So where it is not there yet, a finder waits on `sys.meta_path` for its import, lets the ordinary machinery do it, and
registers the ids right after.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_AWAITED = "gymnasium"


def register_when_imported() -> None:
    """Register the shipped and installed environments with Gymnasium, now or when it is imported."""
    if _AWAITED in sys.modules:
        register_all()
    elif not any(isinstance(f, _Waiting) for f in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def register_all() -> None:
    """Ids only: a spec is read, and code imported, when an environment is made."""
    import gymnasium

    from envfarm.registry import Registry, installed_folders, shipped_folder

    for name in Registry([shipped_folder(), *installed_folders()]).ids():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point="envfarm.gym_ids:make_registered", kwargs={"env_id": name})


def make_registered(env_id: str, **options: Any) -> Any:
    """What Gymnasium calls."""
    from envfarm.registry import make

    return make(env_id, **options)


class _Waiting(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        found = find_spec(name)
        if found is not None and found.loader is not None:
            found.loader = _Registering(found.loader)
        return found


class _Registering(Loader):
    """The package's own loader, and then our ids."""

    def __init__(self, inner: Loader):
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        module.__loader__ = self._inner
        self._inner.exec_module(module)
        register_all()
