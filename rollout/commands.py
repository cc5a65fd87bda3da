"""What `envfarm rollout` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from envfarm.backends.local import backend_class
from envfarm.errors import UserError
from envfarm.registry import Registry, default_registry
from envfarm.spec import EnvSpec
from rollout import interrupt
from rollout.acting import console_for, named_policies, named_policy, progress_bar, specs_of, with_rollouts
from rollout.build import build_policies
from rollout.evaluate import mean_of, shown
from rollout.places import Place, Where, engine_maker, make_place
from rollout.policies import Policy
from rollout.requests import EnvChoice, draw_groups
from rollout.run import RolloutFile, read_run
from rollout.run_check import resolve
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import Episode, Group


@dataclass(frozen=True)
class Job:
    """What is to be played, from a run file or from options."""

    run: RolloutFile
    specs: dict[str, EnvSpec]
    policies: dict[str, Policy]
    choices: list[EnvChoice]
    place: Place


def job_of_file(path: Path, policy: str | None, registry: Registry, where: Where) -> Job:
    """A run file's; `policy` acts in the learner's place. Raises: RunFileError, UserError."""
    run, source = read_run(path, RolloutFile)
    specs = resolve(run, source, registry)
    choices = run.choices(specs)
    own = {name: entry for name, entry in run.policies.items() if policy is None or name != run.learner}
    seated = {name for c in choices for name in c.seats.values()}
    entries = {name: entry for name, entry in own.items() if name in seated}
    place = make_place(run, specs, where)
    maker = engine_maker(place)
    if policy is None:
        policies = build_policies(entries, run.engine, run.folder, maker)
    else:
        policies = named_policies(policy, run.learner, entries, engine=run.engine, run_dir=run.folder, make_engine=maker)
    return Job(run, specs, policies, choices, place)


def job_of_options(envs: Sequence[str], policy: str, rung: int | None, registry: Registry, where: Where) -> Job:
    """One policy in every seat. Raises: UnknownIdError, UserError."""
    specs = specs_of(envs, registry)
    entries = [{"id": name} for name in specs]
    said = {"envfarm": 1, "run": "rollout", "environments": entries, "policies": {"policy": {"scripted": "oracle"}}}
    run = RolloutFile.model_validate(said)
    setting = {} if rung is None else {"rung": rung}
    choices = [EnvChoice(s, dict.fromkeys(s.roles, "policy"), 1.0, setting) for s in specs.values()]
    place = make_place(run, specs, where)
    return Job(run, specs, {"policy": named_policy(policy, "policy", engine=run.engine)}, choices, place)


def run_rollout(
    run_file: Path | None, *, envs: Sequence[str], policy: str | None, episodes: int, group: int, split: str,
    rung: int | None, seed: int | None, out: Path | None, where: Where, as_json: bool,
) -> None:  # fmt: skip
    """Play and store. Raises: UserError."""
    console, registry = console_for(as_json), default_registry()
    if where.backend is not None:
        backend_class(where.backend)  # an unknown one is refused before anything is written
    if (run_file is None) == (not envs):
        raise UserError("give a run file, or environments with --env (one of the two)")
    if run_file is not None:
        job = job_of_file(run_file, policy, registry, where)
    else:
        job = job_of_options(envs, policy or "oracle", rung, registry, where)
    run = job.run
    plan = replace(run.plan(job.specs), seed=run.seed if seed is None else seed)
    requests = draw_groups(
        job.choices, seed=plan.seed, stage="rollout", step=0, groups=-(-episodes // group), size=group,
        sampling=run.sampling.params(), split=split,
    )  # fmt: skip
    folder = out if out is not None else run.folder / "rollouts"
    with Store.open_or_create(folder) as store, progress_bar(console, "episodes", len(requests) * group) as advance:
        work = with_rollouts(plan, job.policies, store, job.place, lambda r: _play(r, requests, advance))
        groups, reused = interrupt.run(work)
    _show_rollout(console, groups, reused, folder, as_json)


async def _play(rollouts: Rollouts, requests: Sequence[Any], advance: Callable[..., None]) -> tuple[list[Group], int]:
    return await rollouts.run(requests, advance), rollouts.reused


def _show_rollout(console: Console, groups: Sequence[Group], reused: int, folder: Path, as_json: bool) -> None:
    episodes = [e for g in groups for e in g.episodes]
    by_env: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_env.setdefault(episode.env, []).append(episode)
    table = Table("environment", "episodes", "ok", "success", "turns", "stops")
    rows = {}
    for name, played in by_env.items():
        ok = [e for e in played if e.ok]
        success = mean_of([float(any(e.success.values())) for e in ok])
        turns = mean_of([len(e.steps) for e in ok])
        stops: dict[str, int] = {}
        for e in played:
            stops[e.stop] = stops.get(e.stop, 0) + 1
        rows[name] = {"episodes": len(played), "ok": len(ok), "success": success, "turns": turns, "stops": stops}
        why = ", ".join(f"{k} {v}" for k, v in sorted(stops.items()))
        table.add_row(name, str(len(played)), str(len(ok)), shown(success, 3), shown(turns, 1), why)
    if as_json:
        print(json.dumps({"store": str(folder), "episodes": len(episodes), "reused": reused, "by_env": rows}))
        return
    console.print(table)
    console.print(f"{len(episodes)} episodes ({reused} were there already) in {folder}")
    for episode in [e for e in episodes if not e.ok][:3]:
        console.print(f"{episode.id}: {episode.stop}: {episode.error}", markup=False)
