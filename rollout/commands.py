"""What `envfarm rollout` and `envfarm eval` do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from envfarm.errors import UserError, did_you_mean
from envfarm.registry import Registry, default_registry
from envfarm.spec import EnvSpec
from envfarm.worker.pool import WorkerPool
from rollout.build import ModelFolder, build_policies, chat_policy, embedded_engine
from rollout.evaluate import EvalResult, evaluate
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.requests import EnvChoice, draw_groups
from rollout.run import EngineEntry, RolloutFile, read_run, resolve
from rollout.scheduler import Rollouts, RunPlan
from rollout.store import Store
from rollout.types import Episode, Group, PolicyVersion, SamplingParams

SCRIPTS = ("oracle", "null", "random")


def console_for(as_json: bool) -> Console:
    return Console(stderr=as_json, highlight=False)


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, nothing elsewhere; gives the function to call after each item."""
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=36), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda *_: progress.advance(task)


def named_policy(text: str, name: str, *, engine: EngineEntry, renderer: str | None = None) -> Policy:
    """What `--policy` names: a script, `oracle:SHARE`, a model folder or a run directory, a served model.

    Raises: UserError.
    """
    script, _, share = text.partition(":")
    if engine.kind == "openai":
        return chat_policy(name, engine.model_copy(update={"model": text}))
    if text in SCRIPTS:
        return ScriptedPolicy(name, text)  # type: ignore[arg-type]
    if script == "oracle" and share:
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise UserError(f"--policy {text}: the share of random actions is {share!r}; expected a number from 0 to 1")
        return ScriptedPolicy(name, "oracle", value)
    if not Path(text).exists():
        raise UserError(
            f"no policy {text!r}{did_you_mean(text, SCRIPTS)}: expected {', '.join(SCRIPTS)}, oracle:SHARE, a model folder "
            "or a run directory"
        )
    folder = policy_folder(Path(text))
    version = folder.version(name) or PolicyVersion(policy=name)
    return EnginePolicy(version, embedded_engine(engine, {name: folder}), folder.renderer(renderer))


def policy_folder(path: Path) -> ModelFolder:
    """A model folder, or the newest policy that a run saved below `policies/`. Raises: UserError."""
    saved = [ModelFolder.open(p.parent) for p in sorted(path.glob("policies/*/model.safetensors"))]
    if not saved:
        return ModelFolder.open(path)
    return max(saved, key=lambda folder: folder.about.get("version", {}).get("number", 0))


async def _with_rollouts(
    plan: RunPlan, policies: dict[str, Policy], store: Store | None, backend: str, workers: int,
    play: Callable[[Rollouts], Any],
) -> Any:  # fmt: skip
    pool = WorkerPool(list(plan.specs.values()), backend=backend, workers=workers)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pool.close)
        await pool.start()
        rollouts = await stack.enter_async_context(Rollouts(plan, pool, policies, store))
        return await play(rollouts)


def specs_of(patterns: Sequence[str], registry: Registry) -> dict[str, EnvSpec]:
    """Raises: UnknownIdError, SpecError."""
    found = [registry.get(p) if Path(p).exists() else registry.get(i) for p in patterns for i in _ids(p, registry)]
    return {spec.id: spec for spec in found}


def _ids(pattern: str, registry: Registry) -> list[str]:
    return [pattern] if Path(pattern).exists() else registry.match(pattern)


# envfarm rollout


@dataclass(frozen=True)
class Job:
    """What is to be played, from a run file or from options."""

    run: RolloutFile
    specs: dict[str, EnvSpec]
    policies: dict[str, Policy]
    choices: list[EnvChoice]


def job_of_file(path: Path, policy: str | None, registry: Registry) -> Job:
    """A run file's; `policy` acts in the learner's place. Raises: RunFileError, UserError."""
    run, source = read_run(path, RolloutFile)
    specs = resolve(run, source, registry)
    choices = run.choices(specs)
    own = {name: entry for name, entry in run.policies.items() if policy is None or name != run.learner}
    seated = {name for c in choices for name in c.seats.values()}
    policies = build_policies(run, {name: entry for name, entry in own.items() if name in seated})
    if policy is not None:
        policies[run.learner] = named_policy(policy, run.learner, engine=run.engine)
    return Job(run, specs, policies, choices)


def job_of_options(envs: Sequence[str], policy: str, rung: int | None, registry: Registry) -> Job:
    """One policy in every seat. Raises: UnknownIdError, UserError."""
    specs = specs_of(envs, registry)
    entries = [{"id": name} for name in specs]
    said = {"envfarm": 1, "run": "rollout", "environments": entries, "policies": {"policy": {"scripted": "oracle"}}}
    run = RolloutFile.model_validate(said)
    setting = {} if rung is None else {"rung": rung}
    choices = [EnvChoice(s, dict.fromkeys(s.roles, "policy"), 1.0, setting) for s in specs.values()]
    return Job(run, specs, {"policy": named_policy(policy, "policy", engine=run.engine)}, choices)


def run_rollout(
    run_file: Path | None, *, envs: Sequence[str], policy: str | None, episodes: int, group: int, split: str,
    rung: int | None, seed: int | None, out: Path | None, backend: str | None, workers: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Play and store. Raises: UserError."""
    console, registry = console_for(as_json), default_registry()
    if (run_file is None) == (not envs):
        raise UserError("give a run file, or environments with --env (one of the two)")
    if run_file is not None:
        job = job_of_file(run_file, policy, registry)
    else:
        job = job_of_options(envs, policy or "oracle", rung, registry)
    run = job.run
    plan = replace(run.plan(job.specs), seed=run.seed if seed is None else seed)
    requests = draw_groups(
        job.choices, seed=plan.seed, stage="rollout", step=0, groups=-(-episodes // group), size=group,
        sampling=run.sampling.params(), split=split,
    )  # fmt: skip
    folder = out if out is not None else run.folder / "rollouts"
    with Store.open_or_create(folder) as store, progress_bar(console, "episodes", len(requests) * group) as advance:
        work = _with_rollouts(
            plan, job.policies, store, backend or run.backend, workers or run.workers, lambda r: _play(r, requests, advance)
        )
        groups, reused = asyncio.run(work)
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
        success = sum(any(e.success.values()) for e in ok) / len(ok) if ok else 0.0
        turns = sum(len(e.steps) for e in ok) / max(len(ok), 1)
        stops: dict[str, int] = {}
        for e in played:
            stops[e.stop] = stops.get(e.stop, 0) + 1
        rows[name] = {"episodes": len(played), "ok": len(ok), "success": success, "turns": turns, "stops": stops}
        shown = ", ".join(f"{k} {v}" for k, v in sorted(stops.items()))
        table.add_row(name, str(len(played)), str(len(ok)), f"{success:.3f}", f"{turns:.1f}", shown)
    if as_json:
        print(json.dumps({"store": str(folder), "episodes": len(episodes), "reused": reused, "by_env": rows}))
        return
    console.print(table)
    console.print(f"{len(episodes)} episodes ({reused} were there already) in {folder}")
    for episode in [e for e in episodes if not e.ok][:3]:
        console.print(f"{episode.id}: {episode.stop}: {episode.error}", markup=False)


# envfarm eval


def run_eval(
    policy: str, *, envs: Sequence[str], splits: Sequence[str], episodes: int | None, rung: int | None,
    temperature: float | None, max_tokens: int | None, seed: int | None, engine: str, url: str | None,
    renderer: str | None, out: Path | None, backend: str, workers: int, as_json: bool,
) -> None:  # fmt: skip
    """Evaluate and print. What is not said is as the policy's `envfarm.json` has it. Raises: UserError."""
    console = console_for(as_json)
    registry = default_registry()
    if engine == "openai" and url is None:
        raise UserError("--engine openai needs --url, e.g. http://127.0.0.1:8000/v1; POLICY is the model's name there")
    about = dict(policy_folder(Path(policy)).about) if engine != "openai" and Path(policy).is_dir() else {}
    own = about.get("evaluation", {})
    entry = EngineEntry(kind=engine, base_url=url, context=about.get("context"))
    acting = named_policy(policy, "policy", engine=entry, renderer=renderer)
    choices = _eval_choices(envs, own, rung, registry)
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
                    rollouts, there, split, count, "policy", sampling=sampling, stage=f"eval/{split}", progress=advance
                )
        return results

    store = Store.open_or_create(out) if out is not None else None
    try:
        results = asyncio.run(_with_rollouts(plan, {"policy": acting}, store, backend, workers, play))
    finally:
        if store is not None:
            store.close()
    _show_eval(console, policy, results, as_json)


def _eval_choices(envs: Sequence[str], own: dict[str, Any], rung: int | None, registry: Registry) -> list[EnvChoice]:
    if envs:
        setting = {} if rung is None else {"rung": rung}
        return [EnvChoice(s, dict.fromkeys(s.roles, "policy"), 1.0, setting) for s in specs_of(envs, registry).values()]
    listed = own.get("environments", [])
    if not listed:
        raise UserError("which environments? Name them with --env (this policy does not say what it was evaluated on)")
    return [
        EnvChoice(spec, dict.fromkeys(spec.roles, "policy"), e.get("weight", 1.0), e.get("setting", {}))
        for e in listed
        for spec in (registry.get(e["id"]),)
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
    table = Table(title=policy)
    for name in ("split", "environment", "episodes", "success", "95 % interval", "turns", "malformed"):
        table.add_column(name, no_wrap=True)
    for split, result in results.items():
        for name, part in {"all": result, **result.by_env}.items():
            shown, (low, high) = part.to_json(), part.ci95
            table.add_row(
                split, name, str(part.episodes), f"{part.success:.3f}", f"{low:.3f} - {high:.3f}", f"{shown['turns']:.1f}",
                f"{shown['malformed']:.2f}",
            )  # fmt: skip
    console.print(table)
    for split, result in results.items():
        if result.not_ok:
            console.print(f"{split}: not ok and not counted: {', '.join(f'{k} {v}' for k, v in result.not_ok.items())}")
