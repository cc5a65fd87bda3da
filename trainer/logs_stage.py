"""The logs: a scripted policy plays a fixed number of episodes, once. They are what all offline stages learn from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rollout.evaluate import tally
from rollout.places import Place
from rollout.policies import Policy
from rollout.requests import draw_groups
from rollout.run_policies import script_of
from rollout.scheduler import Rollouts
from rollout.types import Group, SamplingParams
from trainer.context import Context, timed

STAGE = "logs"
LOGGER = "logger"
"""The logging agent's name where the run file gives it none."""


async def make_logs(context: Context, place: Place) -> None:
    """Play what is not in the store yet. The logging agent sits wherever the run seats weights, since there are none
    yet; scripts sit where they will."""
    logs = context.run.logs
    if logs is None:
        return
    name = logs.policy if isinstance(logs.policy, str) else LOGGER
    scripted = context.run.logging_policy(logs).scripted
    assert scripted is not None, "checked with the run file"
    policies: dict[str, Policy] = {**context.run.scripted_policies()}
    policies[name] = script_of(name, scripted)
    choices = [
        replace(c, seats={role: seated if seated in policies else name for role, seated in c.seats.items()})
        for c in context.run.choices(context.specs, learner=name)
    ]
    requests = draw_groups(
        choices, seed=context.run.seed, stage=STAGE, step=0,
        groups=logs.episodes, size=1, sampling=SamplingParams(), split=logs.split,
    )  # fmt: skip
    context.screen.begin("log episodes", len(requests), "episodes")
    rollouts = Rollouts(context.run.plan(context.specs), place, policies, context.store)
    with timed(context.state.wall_s, "logs"):
        await rollouts.run(requests, lambda _: context.screen.advance())
    context.screen.end(f"{rollouts.reused} of them were there already" if rollouts.reused else "")


def logging_agent(context: Context) -> dict[str, Any] | None:
    """The logging agent's own success, from its episodes."""
    logs = context.run.logs
    if logs is None:
        return None
    name = logs.policy if isinstance(logs.policy, str) else LOGGER
    episodes = context.store.episodes(stage=STAGE)
    groups = [Group(id=e.group, env=e.env, instance_hash=e.instance_hash, episodes=[e]) for e in episodes]
    return tally(groups, logs.split, name).to_json()
