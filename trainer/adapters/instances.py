"""What a row of somebody's data set says of an episode: which environment, which instance, which seat is trained."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from envfarm.errors import UserError, did_you_mean
from envfarm.registry import PATH_VARIABLE, Registry, default_registry
from envfarm.spec import EnvSpec, Instance


@lru_cache
def _registry(env_paths: tuple[str, ...], _variable: str) -> Registry:
    return default_registry(env_paths)


def spec_named(env: str, env_paths: Sequence[str] = ()) -> EnvSpec:
    """The environment of that id (or YAML file, or folder), also in folders of the caller's; read once per process.

    Raises: UnknownIdError, SpecError.
    """
    return _registry(tuple(env_paths), os.environ.get(PATH_VARIABLE, "")).get(env)


def instances(
    spec: EnvSpec, split: str, count: int, *, setting: Mapping[str, Any] | None = None, first: int = 0
) -> Iterator[Instance]:
    """`count` instances of a split from the `first` on, fewer where it ends. Raises: UserError on an unknown split."""
    for index in range(first, min(first + count, spec.size(split))):
        yield spec.instance(split, index, dict(setting or {}))


def read_instance(spec: EnvSpec, text: str | bytes) -> Instance:
    """An instance that was written as JSON.

    Raises: UserError where it is damaged, of another environment, or made by another version of this one.
    """
    try:
        instance = Instance.from_json(text)
    except msgspec.DecodeError as error:
        raise UserError(f"{spec.id}: the row's instance is damaged: {error}") from None
    if instance.env != spec.id:
        raise UserError(f"the row's instance is of {instance.env}, not of {spec.id}")
    if instance.spec_hash != spec.hash:
        raise UserError(
            f"the row's instance was made by another version of {spec.id} (hash {instance.spec_hash[:12]}, here "
            f"{spec.hash[:12]}): the environment's files have changed since; write the data set again"
        )
    return instance


def one_seat(spec: EnvSpec, seat: str | None) -> str:
    """The role that is trained: the one named, else the only one. Raises: UserError."""
    if seat is None:
        if len(spec.roles) > 1:
            raise UserError(f"{spec.id} has the roles {', '.join(spec.roles)}: say which one is trained (`seat`)")
        return next(iter(spec.roles))
    if seat not in spec.roles:
        raise UserError(f"{spec.id} has no role {seat!r}{did_you_mean(seat, spec.roles)}; it has: {', '.join(spec.roles)}")
    return seat
