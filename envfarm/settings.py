"""Settings: what a run narrows. `{"rung": 2}`, `{"set": {"modules": [1, 2]}}`, `{"perturb": "off"}`, or several at once.

A setting is hashed into the instance. `set` and rungs narrow axes one after the other: split, rung, set.
`perturb: off` switches every channel off; `perturb: {observation.format: json}` narrows channels as `set` narrows axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envfarm.distributions import Distribution, Impossible
from envfarm.errors import UserError, did_you_mean
from envfarm.spec import Axis, EnvSpec

KEYS = ("rung", "set", "perturb")


def checked(spec: EnvSpec, setting: Mapping[str, Any] | None) -> dict[str, Any]:
    """The setting in its one spelling: empty parts left out. Raises: UserError naming what is wrong and what is known."""
    given = dict(setting or {})
    for key in given:
        if key not in KEYS:
            raise UserError(f"unknown key {key!r} in a setting{did_you_mean(key, KEYS)}; known: {', '.join(KEYS)}")
    rung, narrowed, perturb = given.get("rung"), given.get("set") or {}, given.get("perturb")
    made: dict[str, Any] = {}
    if rung is not None:
        if not isinstance(rung, int) or isinstance(rung, bool) or not 0 <= rung < len(spec.ladder):
            count = len(spec.ladder)
            raise UserError(f"{spec.id} has no rung {rung!r}: its ladder has {count} rungs, counted from 0")
        made["rung"] = rung
    if narrowed:
        _known(spec.id, "axis", narrowed, spec.axes)
        made["set"] = dict(narrowed)
    if perturb not in (None, {}, "off"):
        if not isinstance(perturb, dict):
            raise UserError(f"perturb: expected `off` or a mapping of channels, found {perturb!r}")
        _known(spec.id, "channel", perturb, spec.perturb)
    if perturb:
        made["perturb"] = perturb
    return made


def _known(env: str, what: str, given: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"{env}: expected a mapping of {what} to values, found {given!r}")
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"{env} has no {what} {name!r}{did_you_mean(str(name), known)}; it has: {listed}")


def narrow_axes(axes: Mapping[str, Axis], conditions: Mapping[str, Any]) -> dict[str, Axis]:
    """Condition axes on what `conditions` say. An absent axis meets no condition: narrowing one that has an `if`
    conditions the axes of that `if` too. Raises: Impossible, its text beginning with the axis."""
    made = dict(axes)
    pending = list(conditions.items())
    while pending:
        name, condition = pending.pop()
        axis = made[name]
        try:
            distribution = axis.distribution.narrow(condition)
        except Impossible as problem:
            raise Impossible(f"{name}: {problem}") from None
        made[name] = Axis(distribution=distribution, condition=axis.condition)  # type: ignore[arg-type]
        pending.extend(axis.condition.items())
    return made


def axes_under(spec: EnvSpec, split: str, setting: Mapping[str, Any]) -> dict[str, Axis]:
    """The axes of a split under a checked setting. Raises: UserError saying which narrowing left nothing."""
    layers = [(f"split {split!r}", spec.split(split).where)]
    if "rung" in setting:
        layers.append((f"rung {setting['rung']}", spec.ladder[setting["rung"]]))
    layers.append(("set", setting.get("set", {})))
    axes = dict(spec.axes)
    done: list[str] = []
    for name, conditions in layers:
        try:
            axes = narrow_axes(axes, conditions)
        except Impossible as problem:
            before = f" after {' and '.join(done)}" if done else ""
            raise UserError(f"{spec.id}: {name} leaves no instance{before}: {problem}") from None
        done.append(name)
    return axes


def channels_under(spec: EnvSpec, setting: Mapping[str, Any]) -> dict[str, Distribution]:
    """The channels under a checked setting."""
    perturb = setting.get("perturb")
    if perturb == "off":
        return {}
    channels: dict[str, Distribution] = dict(spec.perturb)
    for name, condition in (perturb or {}).items():
        try:
            channels[name] = channels[name].narrow(condition)
        except Impossible as problem:
            raise UserError(f"{spec.id}: perturb leaves nothing: {name}: {problem}") from None
    return channels
