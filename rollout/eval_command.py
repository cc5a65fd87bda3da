"""What `envfarm eval` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from envfarm.backends.local import backend_class
from envfarm.errors import UserError, did_you_mean
from envfarm.registry import Registry, default_registry
from rollout import interrupt
from rollout.acting import console_for, named_policies, policy_folder, progress_bar, specs_of, with_rollouts
from rollout.build import engine_class, opponents
from rollout.evaluate import NO_FIGURE, EvalResult, evaluate, shown
from rollout.models import is_model
from rollout.places import Where
from rollout.plan import RunPlan
from rollout.requests import EnvChoice
from rollout.run import SELF
from rollout.run_policies import EngineEntry
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import SamplingParams


def run_eval(
    policy: str, *, envs: Sequence[str], splits: Sequence[str], episodes: int | None, rung: int | None,
    temperature: float | None, max_tokens: int | None, seed: int | None, engine: str, url: str | None,
    renderer: str | None, out: Path | None, where: Where, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate and print. What is not said is as the policy's `envfarm.json` has it. Raises: UserError."""
    console = console_for(as_json)
    registry = default_registry()
    if where.backend is not None:
        backend_class(where.backend)  # unknown names are refused as such, whatever else is wrong
    if engine != "torch":  # which takes its time to import, and need not be wanted
        engine_class(engine)
    if engine == "openai" and url is None:
        raise UserError("--engine openai needs --url, e.g. http://127.0.0.1:8000/v1; POLICY is the model's name there")
    folder = policy_folder(policy) if engine != "openai" and is_model(policy) else None
    about = dict(folder.about) if folder is not None else {}
    own = about.get("evaluation", {})
    entry = EngineEntry(kind=engine, base_url=url, context=about.get("context"))
    others = opponents(folder) if folder is not None else {}
    name = "policy" if "policy" not in others else "policy under evaluation"
    choices = _eval_choices(name, envs, own, rung, registry)
    seated = {n: e for n, e in others.items() if any(n in c.seats.values() for c in choices)}
    policies = named_policies(policy, name, seated, engine=entry, renderer=renderer)
    per_split = _eval_splits(choices, splits, episodes, own)
    said = about.get("sampling", {})
    sampling = SamplingParams(
        temperature=_first(temperature, own.get("temperature"), said.get("temperature"), 0.0), top_p=said.get("top_p", 1.0),
        max_tokens=_first(max_tokens, said.get("max_tokens"), 256),
    )  # fmt: skip
    specs = {c.spec.id: c.spec for c in choices}
    plan = RunPlan(
        "eval", _first(seed, about.get("seed"), 0), specs, token_budget=said.get("episode_tokens", 0),
        max_in_flight=entry.max_in_flight,
    )  # fmt: skip

    async def play(rollouts: Rollouts) -> dict[str, EvalResult]:
        results = {}
        for split, count in per_split.items():
            there = [c for c in choices if split in c.spec.splits]
            with progress_bar(console, f"eval {split}", count) as advance:
                results[split] = await evaluate(
                    rollouts, there, split, count, name, sampling=sampling, stage=f"eval/{split}", progress=advance
                )
        return results

    with nullcontext() if out is None else Store.open_or_create(out) as store:
        results = interrupt.run(with_rollouts(plan, policies, store, where.pool(specs), play))
    _show_eval(console, policy, results, as_json)


def _eval_choices(name: str, envs: Sequence[str], own: dict[str, Any], rung: int | None, registry: Registry) -> list[EnvChoice]:
    """The environments asked for, or else the policy's own; seated as in its run where that played them, else the
    policy (`name`) in every seat."""
    listed = {e["id"]: e for e in own.get("environments", [])}
    if not envs and not listed:
        raise UserError("which environments? Name them with --env (this policy does not say what it was evaluated on)")
    chosen: dict[str, Any] = {}
    if envs:
        setting = {} if rung is None else {"rung": rung}
        chosen = {spec.id: (spec, 1.0, setting) for spec in specs_of(envs, registry).values()}
    else:
        chosen = {i: (registry.get(i), e.get("weight", 1.0), e.get("setting", {})) for i, e in listed.items()}
    return [
        EnvChoice(spec, {role: name if seats.get(role, SELF) == SELF else seats[role] for role in spec.roles}, weight, setting)
        for env_id, (spec, weight, setting) in chosen.items()
        for seats in listed.get(env_id, {}).get("seats", [{}])
    ]


def _eval_splits(choices: list[EnvChoice], splits: Sequence[str], episodes: int | None, own: dict[str, Any]) -> dict[str, int]:
    """Split -> episodes. Raises: UserError where no environment has a split."""
    known: dict[str, int] = own.get("splits", {})
    wanted = list(splits) or list(known) or ["heldout"]
    there = {s for c in choices for s in c.spec.splits}
    for split in wanted:
        if split not in there:
            if not splits:
                continue
            raise UserError(f"no split {split!r}{did_you_mean(split, there)}; there are: {', '.join(sorted(there))}")
    return {s: episodes if episodes is not None else known.get(s, 300) for s in wanted if s in there}


def _first(*values: Any) -> Any:
    return next(v for v in values if v is not None)


def _show_eval(console: Console, policy: str, results: dict[str, EvalResult], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"policy": policy, "splits": {s: r.to_json() for s, r in results.items()}}))
        return
    table = Table(title=policy, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("split", "environment", "episodes", "success [95 %]", "turns", "malformed"):
        table.add_column(name, no_wrap=name != "environment", overflow="fold")
    for split, result in results.items():
        for name, part in {"all": result, **result.by_env}.items():
            plain, (low, high) = part.to_json(), part.ci95
            success = f"{shown(part.success, 3)} [{low:.2f}, {high:.2f}]" if part.episodes else NO_FIGURE
            table.add_row(split, name, str(part.episodes), success, shown(plain["turns"], 1), shown(plain["malformed"], 2))
    console.print(table)
    for split, result in results.items():
        if result.not_ok:
            console.print(f"{split}: not ok and not counted: {', '.join(f'{k} {v}' for k, v in result.not_ok.items())}")
