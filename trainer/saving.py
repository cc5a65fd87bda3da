"""Policies on disk, with what it takes to act and to be evaluated again, episode for episode (`envfarm.json`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rollout.build import ModelFolder, acting_folder
from rollout.policies import EnginePolicy
from rollout.renderers.base import Renderer
from rollout.run import SELF
from rollout.tokenizers import HFTokenizer
from rollout.types import PolicyVersion
from trainer.context import Trainee, done
from trainer.local import LocalClient
from trainer.models import save_model_folder, save_policy
from trainer.weights import Trained


async def save(trainee: Trainee, folder: Path, stage: str) -> None:
    """The learner as it is now."""
    published = await done(trainee.client.publish())
    client = trainee.client
    assert isinstance(client, LocalClient)
    save_policy(folder, client.trained, trainee.tokenizer, about(trainee, folder, stage, published.version))


def acting_policy(
    run_dir: Path, model: Trained, tokenizer: HFTokenizer, renderer: Renderer, version: PolicyVersion
) -> ModelFolder:
    """The learner as it is when the run starts or goes on, as the folder that its engine is started from: an engine may
    live in another process, or be one that reads folders only."""
    folder = run_dir / "acting" / version.policy
    said = {"envfarm": 1, "renderer": renderer.name, "version": _named(version)}
    save_model_folder(folder, model, tokenizer, said)
    return ModelFolder.open(folder)


def _named(version: PolicyVersion) -> dict[str, Any]:
    return {"policy": version.policy, "number": version.number, "checksum": version.checksum}


def about(trainee: Trainee, folder: Path, stage: str, version: PolicyVersion) -> dict[str, Any]:
    """The content of `envfarm.json`."""
    run, learner = trainee.run, trainee.rollouts.policies[trainee.run.learner]
    assert isinstance(learner, EnginePolicy)
    return {
        "envfarm": 1, "run": run.run, "stage": stage, "seed": run.seed, "renderer": trainee.renderer.name,
        "version": _named(version),
        "sampling": run.sampling.model_dump(),
        "context": learner.engine.capabilities.context,
        "evaluation": {
            "stage": f"eval/{stage}", "splits": {s: run.evaluate.count(s) for s in run.evaluate.splits},
            "temperature": run.evaluate.temperature,
            "environments": [
                e.model_dump(mode="json") | {"seats": _seatings(trainee, e.id)} for e in run.environments
            ],
            "policies": _opponents(trainee, folder),
        },
    }  # fmt: skip


def _seatings(trainee: Trainee, env_id: str) -> list[dict[str, str]]:
    learner = trainee.run.learner
    return [
        {role: SELF if name == learner else name for role, name in seats.items()}
        for seats in trainee.run.seatings(trainee.specs[env_id])
    ]


def _opponents(trainee: Trainee, folder: Path) -> dict[str, Any]:
    """Who sits beside it in evaluations, as entries of a run file; folders are written relative to this one."""
    run = trainee.run
    names = {name for spec in trainee.specs.values() for seats in run.seatings(spec) for name in seats.values()}
    entries: dict[str, Any] = {}
    for name in sorted(names - {run.learner}):
        entry = run.policies[name]
        said = entry.model_dump(mode="json", exclude_unset=True)
        if entry.version is not None:
            acting = trainee.run_dir / acting_folder(entry.version, trainee.saved, trainee.state.number)
            said |= {"version": None, "model": os.path.relpath(acting, folder)}
        elif isinstance(entry.model, str):
            said["model"] = os.path.relpath(entry.model, folder) if Path(entry.model).is_dir() else entry.model
        entries[name] = {k: v for k, v in said.items() if v is not None}
    return entries
