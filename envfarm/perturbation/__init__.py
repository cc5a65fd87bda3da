"""How the world around a task shows itself and misbehaves: channels that wrap any session, no code in the environment.

A channel's value is drawn once per instance (`Instance.perturbation`); what happens on a call is drawn from a generator
keyed by (instance, channel, turn), so one more call never shifts the rest. Everything that a channel does is recorded
in `Turn.events`. A new channel costs one file and one line of `CHANNELS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from envfarm.perturbation.base import Channel, Draws

if TYPE_CHECKING:
    from envfarm.session import Session

CHANNELS: dict[str, str] = {
    "observation.format": "envfarm.perturbation.format:Format",
    "observation.distractors": "envfarm.perturbation.distractors:Distractors",
    "action.tool_aliases": "envfarm.perturbation.tool_aliases:ToolAliases",
    "action.argument_order": "envfarm.perturbation.argument_order:ArgumentOrder",
    "transition.tool_error": "envfarm.perturbation.tool_error:ToolError",
    "transition.latency_s": "envfarm.perturbation.latency:Latency",
    "reward.delay_turns": "envfarm.perturbation.reward_delay:RewardDelay",
}
"""Key in the YAML's `perturb:` -> `module:Class`. The order is the order in which observations pass through them, inside out."""


def channel_class(key: str) -> type[Channel]:
    """The class behind a key. Raises: KeyError."""
    module, _, name = CHANNELS[key].partition(":")
    return getattr(import_module(module), name)


def perturbed(session: Session) -> Session:
    """`session`, wrapped so that the channels of each instance act on it (none where the instance has none)."""
    from envfarm.perturbation.wrapper import PerturbedSession

    return PerturbedSession(session) if session.env_spec.perturb else session


__all__ = ["CHANNELS", "Channel", "Draws", "channel_class", "perturbed"]
