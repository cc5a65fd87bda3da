"""RLlib on our environments: live for PPO and its kind, and from stored episodes for BC and MARWIL. The door to `ray` here.

    from trainer.rllib import register, offline
    made = register("games/maze-v0", setting={"rung": 0})
    config = PPOConfig().environment(made.name).env_runners(num_env_runners=0).learners(num_learners=0)

    # envfarm export STORE --to rllib --output DIR
    config = BCConfig().environment(**made.spaces).offline_data(**offline("DIR/games/maze-v0")).learners(num_learners=0)

Which environments fit, and how text becomes vectors and actions become numbers: `rollout.flat`. The exporter uses the same.
Remote environment runners get the spec with the name; the environment's own files must be where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from envfarm.errors import MissingDependencyError, UserError
from envfarm.registry import default_registry
from rollout.export.rllib import FILE
from rollout.flat import SIZE, Encoding, FlatEnv

try:
    from ray import tune
except ModuleNotFoundError as missing:
    raise MissingDependencyError("trainer.rllib needs Ray, which is not installed: pip install 'envfarm[ray]'") from missing

PROBES = 64
"""How many instances of a setting are looked at for what does not fit."""


@dataclass(frozen=True)
class Registered:
    """What `register` made: a name for `config.environment`, and the spaces where only stored episodes are read."""

    name: str
    encoding: Encoding

    @property
    def spaces(self) -> dict[str, gymnasium.Space[Any]]:
        """For `config.environment(**made.spaces)`."""
        return {"observation_space": self.encoding.observation_space, "action_space": self.encoding.action_space}


def register(
    env: str, *, setting: Mapping[str, Any] | None = None, split: str = "train", actions: Sequence[str] | None = None,
    name: str | None = None, size: int = SIZE, env_paths: Sequence[Path | str] = (),
) -> Registered:  # fmt: skip
    """Make an environment known to Ray Tune and RLlib, under its id or `name`.

    `env_config={"setting": ..., "split": ...}` in `config.environment` overrides what is given here, e.g. for evaluation
    on held-out instances. Raises: UnknownIdError with near matches; UserError where the environment does not fit
    (`rollout.flat`), for an unknown split, or a setting that the environment does not have.
    """
    spec = default_registry(env_paths).get(env)
    encoding = Encoding.of(spec, actions=actions, size=size)

    def create(config: Mapping[str, Any]) -> FlatEnv:
        own = {"setting": setting, "split": split} | {k: config[k] for k in ("setting", "split") if k in config}
        return FlatEnv(spec, encoding=encoding, **own)

    for index in range(min(PROBES, spec.size(split))):  # refuses what does not fit now, and not in a runner
        if spec.instance(split, index, dict(setting or {})).perturbation.get("action.tool_aliases"):
            raise UserError(
                f"{spec.id}: this setting shows its tools under other names, which actions by number cannot follow: use "
                '{"perturb": "off"} or {"perturb": {"action.tool_aliases": false}}'
            )
    tune.register_env(name or spec.id, create)
    return Registered(name or spec.id, encoding)


def offline(folder: Path | str) -> dict[str, Any]:
    """Arguments for `config.offline_data(**...)`, of a folder that `envfarm export --to rllib` made for one environment.

    Raises: UserError where it is not one.
    """
    path = Path(folder)
    if not (path / FILE).is_file():
        found = sorted(str(p.parent) for p in path.rglob(FILE))
        hint = f"; did you mean {' or '.join(found)}?" if found else f": it holds no {FILE}"
        raise UserError(f"{path} is no exported environment{hint} (`envfarm export STORE --to rllib --output DIR`)")
    return {
        "input_": [str(path.resolve())],
        "input_read_episodes": True,
        "input_read_batch_size": 8,
        "dataset_num_iters_per_learner": 5,
        "map_batches_kwargs": {"concurrency": 1},
    }
