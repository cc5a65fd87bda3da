"""What pydantic cannot know of a run file's lower half: are the environments there, and is somebody in every seat?

The trainer's half is checked by `trainer.run_check`, which begins with this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envfarm.backends.local import backend_class
from envfarm.errors import Location, RunFileError, UserError, did_you_mean
from envfarm.registry import Registry
from envfarm.spec import EnvSpec
from envfarm.yaml_source import Source
from rollout.engines.base import ENGINE_KEYS, engine_keys
from rollout.run import SELF, RolloutFile
from rollout.run_policies import EngineEntry


def resolve(run: RolloutFile, source: Source, registry: Registry) -> dict[str, EnvSpec]:
    """The specs of the run's environments, by the ids that the run file uses.

    Raises: RunFileError with the place: an unknown id or setting, one named twice, a seat without a policy, a role or
    policy that is not there, a key that the engine does not know, `version` of a policy that is not there, an unknown backend.
    """
    _at(source.at("backend") if "backend" in source.data else source.at(), backend_class, run.backend)
    _check_engine_keys(run.engine, source, ("engine",))
    for name, policy in run.policies.items():
        if policy.engine is not None:
            _check_engine_keys(policy.engine, source, ("policies", name, "engine"))
    specs: dict[str, EnvSpec] = {}
    for index, entry in enumerate(run.environments):
        spec = _at(source.at("environments", index, "id"), registry.get, entry.id)
        if spec.id in specs:
            raise RunFileError(f"{spec.id} is named twice", source.at("environments", index, "id"))
        if spec.id != entry.id:
            raise RunFileError(
                f"{entry.id!r} names no version; write {spec.id!r}, so that the run means the same tomorrow",
                source.at("environments", index, "id"),
            )
        first = next(iter(spec.splits))
        _at(source.at("environments", index, "setting"), spec.instance, first, 0, entry.setting)
        specs[spec.id] = spec
    _check_seats(run, source, specs)
    return specs


def _at(place: Location, call: Any, *args: Any) -> Any:
    """`call(*args)`, its user errors told with the place in the run file."""
    try:
        return call(*args)
    except UserError as error:
        raise RunFileError(str(error), place) from error


def _check_engine_keys(entry: EngineEntry, source: Source, at: tuple[str, ...]) -> None:
    """A key that another kind of engine would know is refused: it would be read and do nothing."""
    for key in entry.unfitting():
        known = ", ".join(("kind", *engine_keys(entry.kind)))
        takers = [kind for kind in ENGINE_KEYS if key in engine_keys(kind)]
        hint = f"; it is for {' or '.join(takers)}" if takers else ""
        raise RunFileError(
            f"an engine of kind {entry.kind!r} takes no {key!r}{hint}. Known here: {known}", source.key_at(*at, key)
        )
    if entry.serve and entry.base_url is not None:
        raise RunFileError(
            "`serve: true` starts a server, `base_url` names one that runs: say one of them", source.key_at(*at, "serve")
        )


def _check_seats(run: RolloutFile, source: Source, specs: Mapping[str, EnvSpec]) -> None:
    for env_id, seats in run.seats.items():
        if env_id not in specs:
            raise RunFileError(
                f"seats: {env_id!r} is none of this run's environments{did_you_mean(env_id, specs)}",
                source.key_at("seats", env_id),
            )
        for role, policy in seats.items():
            roles = specs[env_id].roles
            if role not in roles:
                hint = did_you_mean(role, roles)
                raise RunFileError(
                    f"{env_id} has no role {role!r}{hint}; it has: {', '.join(roles)}", source.key_at("seats", env_id, role)
                )
            if policy != SELF and policy not in run.policies:
                hint = did_you_mean(policy, run.policies)
                raise RunFileError(
                    f"no policy {policy!r}{hint}; there are: {', '.join(run.policies)}", source.at("seats", env_id, role)
                )
    for spec in specs.values():
        try:
            run.seats_of(spec)
        except ValueError as error:
            given = run.seats.get(spec.id, {})
            free = next(r for r in spec.roles if given.get(r, SELF) == SELF)
            raise RunFileError(
                f"{spec.id}: the seat {free!r} has no policy: {error} Name one under `seats`, or make one `trainable`",
                source.at("seats", spec.id) if spec.id in run.seats else source.at("policies"),
            ) from error
    for name, entry in run.policies.items():
        if entry.version is not None:
            base = entry.version.partition("@")[0]
            trained = [n for n, e in run.policies.items() if e.trainable]
            if base not in trained:
                raise RunFileError(
                    f"version {entry.version!r} is of no policy here that is trained{did_you_mean(base, trained)}; expected "
                    f"NAME@STAGE or NAME@NUMBER with NAME one of: {', '.join(trained) or 'none is trainable'}",
                    source.at("policies", name, "version"),
                )
