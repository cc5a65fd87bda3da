"""What several commands need: the registry, and settings given on the command line. Heavy imports wait for the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envfarm.registry import Registry
    from envfarm.spec import EnvSpec, Instance


def registry() -> Registry:
    """The shipped tree, installed packages, ENVFARM_PATH and --env-path."""
    from envfarm.registry import default_registry

    return default_registry()


def setting(rung: int | None = None, narrowed: Sequence[str] = (), perturb: str | None = None) -> dict[str, Any]:
    """A setting from `--rung 1 --set modules=[1,2] --set bug=off_by_one --perturb off`. Raises: UserError."""
    from envfarm.errors import UserError
    from envfarm.yaml_source import parse_yaml

    made: dict[str, Any] = {} if rung is None else {"rung": rung}
    for item in narrowed:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UserError(f"--set: expected AXIS=VALUE such as modules=[1,2], found {item!r}")
        made.setdefault("set", {})[name] = parse_yaml(value, f"--set {name}", UserError).data
    if perturb is not None:
        if perturb != "off":
            raise UserError(f"--perturb: expected off, found {perturb!r}")
        made["perturb"] = "off"
    return made


def instance_of(spec: EnvSpec, split: str, index: int, setting: dict[str, Any]) -> Instance:
    """The `index`-th instance of a split. Raises: UserError where there is none."""
    from envfarm.errors import UserError

    size = spec.size(split)
    if not 0 <= index < size:
        raise UserError(f"{spec.id}: split {split!r} has {size} instances, counted from 0; there is no {index}")
    return spec.instance(split, index, setting)


def complete_id(incomplete: str) -> list[str]:
    """Ids for shell completion."""
    return [name for name in registry().ids() if name.startswith(incomplete)]
