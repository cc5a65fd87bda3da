"""Golden episodes: what a middling agent saw and did, once, in each shipped environment.

`python -m tests.update_golden` writes them anew; read the diff: a change here is a change of behaviour, and asks for a
new version of the environment's id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envfarm.masking import mask
from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.testing import agents

FOLDER = Path(__file__).parent / "golden_episodes"
INSTANCES = (("train", 3, 0), ("validation", 5, 1), ("heldout", 7, 1))
"""Split, index, rung."""


def played(name: str) -> list[dict[str, Any]]:
    """The golden episodes of one environment, as they come out now. Paths and times of commands are masked."""
    spec = default_registry().get(name)
    session = local_session(spec)
    try:
        return [_episode(session, spec.instance(split, index, {"rung": rung})) for split, index, rung in INSTANCES]
    finally:
        session.close()


def _episode(session: Any, instance: Any) -> dict[str, Any]:
    seen = agents.play(session, instance, agents.mixed(0.3, seed=1))
    shown = [mask(action, text)[0] for action, text in zip(["", *seen.actions], seen.observations, strict=False)]
    return {
        "split": instance.split, "seed": instance.seed, "params": instance.params, "perturbation": instance.perturbation,
        "observations": shown, "actions": seen.actions, "rewards": seen.rewards, "stop": seen.stop,
    }  # fmt: skip


def file_of(name: str) -> Path:
    return FOLDER / (name.replace("/", "-") + ".json")


def text_of(episodes: list[dict[str, Any]]) -> str:
    return json.dumps(episodes, indent=1, ensure_ascii=False) + "\n"
