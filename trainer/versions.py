"""Older versions of the learner, as opponents: `version: learner@STAGE` and `version: learner@NUMBER`.

`learner@STAGE` are the weights that a stage of this run saved; `learner@NUMBER` those of the moment when the learner's
update count reached NUMBER, through all stages (with several updates per batch, after the first batch that reached it).
Until such weights exist the policy plays with the untrained ones. Which weights act is a function of the stages saved
and the update count, both of which a checkpoint commits, so a resumed run seats the same ones; every episode records
what sat there. They are served by the learner's own engine, and none of their tokens is trained on.
"""

from __future__ import annotations

from envfarm.errors import CapabilityError
from rollout.build import ModelFolder, acting_folder
from rollout.engines.base import SeveralPolicies
from rollout.engines.torch.checkpoint import load_state
from rollout.policies import EnginePolicy
from rollout.run_policies import PolicyEntry
from trainer.context import Trainee
from trainer.run import RunFile
from trainer.saving import save


def older_versions(run: RunFile) -> dict[str, PolicyEntry]:
    """The policies that are versions of the learner, by name."""
    return {name: entry for name, entry in run.policies.items() if entry.version is not None}


def snapshot_numbers(run: RunFile) -> list[int]:
    """The update counts at which weights must be kept."""
    named = {(entry.version or "").partition("@")[2] for entry in run.policies.values()}
    return sorted(int(n) for n in named if n.isdigit() and int(n) > 0)


async def keep_snapshots(trainee: Trainee, before: int) -> None:
    """Save the weights as they are where the update count passed a number that a policy names, since it was `before`."""
    for number in snapshot_numbers(trainee.run):
        if before < number <= trainee.state.number:
            await save(trainee, trainee.run_dir / "snapshots" / str(number), trainee.stage)


async def seat_older_versions(trainee: Trainee) -> None:
    """Serve every older version with the weights that act for it now. Nothing to do where they are served already.

    Raises: CapabilityError where the engine serves one policy only.
    """
    for name, entry in older_versions(trainee.run).items():
        assert entry.version is not None
        folder = ModelFolder.open(trainee.run_dir / acting_folder(entry.version, trainee.saved, trainee.state.number))
        version = folder.version(name, incarnation=trainee.state.incarnation)
        assert version is not None, "the trainer saved it"
        seated = trainee.rollouts.policies.get(name)
        if seated is not None:
            if seated.version != version:
                await trainee.rollouts.publish(version, load_state(folder.path))
            continue
        learner = trainee.rollouts.policies[trainee.run.learner]
        assert isinstance(learner, EnginePolicy)
        if not isinstance(learner.engine, SeveralPolicies):
            raise CapabilityError(f"policy {name!r}: {type(learner.engine).__name__} serves one policy only; use `torch`")
        await learner.engine.add_policy(version, folder.path)
        trainee.rollouts.policies[name] = EnginePolicy(version, learner.engine, folder.renderer(entry.renderer))
