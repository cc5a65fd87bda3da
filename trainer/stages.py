"""A whole run, stage by stage: logs, the untrained policy, what the run file lists; each policy saved and evaluated.

    summary = train(run, specs, console)

Where it stands is `RunState`; every stage is safe to be killed in and goes on where the last checkpoint was. The same
run file, seed, machine and count of threads end with the same weights, however often it was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from envfarm.errors import EnvfarmError
from envfarm.spec import EnvSpec
from rollout import interrupt
from rollout.build import frozen_models, served_policies
from rollout.engines.base import NEEDS_FOR_TRAINING, Engine, require
from rollout.made import missing, remove_made
from rollout.places import Place, engine_maker, make_place
from rollout.policies import EnginePolicy, Policy
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import PolicyVersion
from trainer.asynchronous import improve_async
from trainer.checkpoint import Checkpoints, RunLock, RunState, check_same_run, meaning, next_incarnation, write_atomically
from trainer.context import Context, Trainee, done, timed
from trainer.evaluation import curve_point, evaluate_policy
from trainer.freshness import asynchronous_stages
from trainer.local import LocalClient
from trainer.logs_stage import logging_agent, make_logs
from trainer.metrics import Metrics
from trainer.models import is_fresh, load_tokenizer, make_model, model_folder, renderer_of, train_tokenizer
from trainer.offline import imitate, improve
from trainer.online import improve_online
from trainer.progress import Screen
from trainer.run import Imitation, Offline, Online, RunFile
from trainer.saving import acting_policy, save
from trainer.summary import load_evaluation, summarize, write_summary
from trainer.versions import seat_older_versions

INSTALL_SECONDS = "ENVFARM_INSTALL_S"
"""Set by whoever installed us (`make demo`): seconds, for the summary."""


def train(run: RunFile, specs: Mapping[str, EnvSpec], console: Console, *, report: bool = True) -> dict[str, Any]:
    """Run or resume. Returns the summary, which also stands in `summary.json`, with the report's place where the caller
    is going to write one. A run that is refused before its first episode leaves no directory.

    Raises: RunLockedError, RunFileError where the directory is another run's, StoreError, CapabilityError, RunHaltedError,
    MissingDependencyError, UserError where a Ray cluster cannot be joined.
    """
    run_dir, place = run.folder, make_place(run, specs)
    made = missing(run_dir)
    with RunLock(run_dir):
        try:
            return interrupt.run(_train(run, specs, place, run_dir, console, report))
        except EnvfarmError:
            if not (run_dir / "store").exists():
                remove_made(made)
            raise


async def _train(
    run: RunFile, specs: Mapping[str, EnvSpec], place: Place, run_dir: Path, console: Console, report: bool
) -> dict[str, Any]:
    checkpoints = Checkpoints(run_dir)
    state = begin(run, run_dir, checkpoints)
    torch.set_num_threads(state.threads)
    metrics = Metrics(run_dir)
    try:
        with Store.open_or_create(run_dir / "store") as store, Screen(console, f"{run.run}  ({run_dir})") as screen:
            await place.start()
            context = Context(run, specs, run_dir, state, checkpoints, store, metrics, screen)
            if state.stage == 0:
                await make_logs(context, place)
                state.stage = 1
                checkpoints.commit(state, None)
            await _stages(context, place)
            return summarize_run(context, report)
    finally:
        await place.close()
        metrics.close()


def begin(run: RunFile, run_dir: Path, checkpoints: Checkpoints) -> RunState:
    """The state to go on from: of the last checkpoint, as a new incarnation, or of nothing."""
    run_hash = meaning(run.model_dump(mode="json"))
    checkpoints.sweep()
    found = checkpoints.latest()
    fresh = RunState(run_hash=run_hash, threads=run.engine.threads or torch.get_num_threads())
    state = fresh if found is None else found[0]
    check_same_run(state, run_hash, run_dir)
    state.incarnation = next_incarnation(run_dir)
    write_atomically(run_dir / "run.json", run.model_dump_json(by_alias=True, exclude_unset=True, indent=1).encode())
    return state


async def _stages(context: Context, place: Place) -> None:
    trainee, engine = await _learner(context, place)
    names = ["untrained", *(name for name, _ in context.run.named_stages())]
    async with trainee.rollouts:
        require(engine, NEEDS_FOR_TRAINING, what="training")
        await trainee.publish()
        while trainee.state.stage <= len(names):
            index = trainee.state.stage - 1
            await _stage(trainee, names, index)
            trainee.state.stage, trainee.state.step, trainee.state.history = index + 2, 0, []
            trainee.commit()
    trainee.client.close()


async def _stage(trainee: Trainee, names: list[str], index: int) -> None:
    """Train, save and evaluate one stage's policy."""
    name = trainee.stage = names[index]
    trainee.saved = names[:index]
    if index > 0:
        settings = trainee.run.stages[index - 1].settings
        if trainee.state.step == 0:
            begin_from = getattr(settings, "from_", None) or names[index - 1]
            await done(trainee.client.load_weights(trainee.run_dir / "policies" / begin_from))
        if isinstance(settings, Imitation):
            await imitate(trainee, name, settings)
        elif isinstance(settings, Offline):
            await improve(trainee, name, settings)
        elif isinstance(settings, Online):
            loop = improve_async if settings.asynchronous else improve_online
            await loop(trainee, name, settings, lambda step: curve_point(trainee, name, step))
    await trainee.publish()
    trainee.saved = names[: index + 1]
    await save(trainee, trainee.run_dir / "policies" / name, name)
    await seat_older_versions(trainee)
    with timed(trainee.state.wall_s, "eval"):
        await evaluate_policy(trainee, name)


async def _learner(context: Context, place: Place) -> tuple[Trainee, Engine]:
    """The model with its tokenizer, its trainer and its engine; from the checkpoint where there is one."""
    run, state = context.run, context.state
    entry = run.policies[run.learner]
    folder = context.run_dir / "tokenizer"
    if not is_fresh(entry):
        folder = model_folder(entry)
    elif not (folder / "tokenizer.json").exists():
        train_tokenizer(entry, context.store.episodes(stage="logs", ok=True)).save(folder)
    tokenizer = load_tokenizer(folder)
    renderer = renderer_of(entry, tokenizer)
    state.tokenizer_hash = tokenizer.hash
    context.store.bind(tokenizer_hash=tokenizer.hash, template_hash=renderer.template_hash)
    model = make_model(entry, tokenizer, run.seed)
    client = LocalClient(model, policy=run.learner, incarnation=state.incarnation, threads=state.threads)
    found = context.checkpoints.latest()
    if found is not None and state.checksum:
        await done(client.load_state(found[1]))
    version = (await done(client.publish())).version
    frozen = frozen_models(run)
    acting = acting_policy(context.run_dir, model, tokenizer, renderer, version)
    engine = engine_maker(place)(run.engine, {run.learner: acting, **frozen}, {run.learner: version})
    policies: dict[str, Policy] = {**run.scripted_policies(), **served_policies(run)}
    for name, opponent in frozen.items():
        said = opponent.version(name) or PolicyVersion(name)
        policies[name] = EnginePolicy(said, engine, opponent.renderer(run.policies[name].renderer))
    policies[run.learner] = EnginePolicy(version, engine, renderer)
    rollouts = Rollouts(run.plan(context.specs), place, policies, context.store)
    parts = {f: getattr(context, f) for f in context.__dataclass_fields__}
    return Trainee(**parts, client=client, rollouts=rollouts, renderer=renderer, tokenizer=tokenizer), engine


def summarize_run(context: Context, report: bool) -> dict[str, Any]:
    """`summary.json`, from what stands on disk."""
    names = ["untrained", *(name for name, _ in context.run.named_stages())]
    found = {n: load_evaluation(context.run_dir, n) for n in names}
    wall_s = context.state.wall_s
    install = os.environ.get(INSTALL_SECONDS)
    extra = {
        "run": context.run.run,
        "logging_agent": logging_agent(context),
        "wall_s": {
            "install": float(install) if install else None,
            "train": sum(v for k, v in wall_s.items() if k != "eval"),
            "eval": wall_s.get("eval", 0.0),
            "parts": wall_s,
        },
        "counters": context.state.counters,
        "incarnations": context.state.incarnation + 1,
        "threads": context.state.threads,
        **asynchronous_stages(context.run, context.run_dir),
        "report": str(context.run_dir / "report.html") if report else None,
    }
    summary = summarize({n: e for n, e in found.items() if e is not None}, extra)
    write_summary(context.run_dir, summary)
    return summary
