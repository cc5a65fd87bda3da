"""What a policy is served with, what may replace it, and whether what answers is it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envfarm.errors import UserError
from envfarm.seeding import stable_hash
from rollout.engines.base import Probe
from rollout.engines.vllm.replica import Lora, UpdateRefused
from rollout.types import PolicyVersion

CLOSE, MEAN = 1e-3, 0.1
"""How far the answer to a probe may be off: the largest difference in float32, the mean one where a side computes in 16 bits
and single tokens differ by 0.1 and more. In float32 this tells weights apart; in 16 bits it finds what is broken, and it is
the checksum of what arrived that tells the weights apart."""


@dataclass(frozen=True)
class Weights:
    """What is served, so that it can be served again."""

    version: PolicyVersion
    state: Mapping[str, Any] | None = None  # None: what the model folder has
    lora: Lora | None = None

    @property
    def label(self) -> str:
        """What vLLM calls them."""
        return f"{self.version}#{self.version.checksum[:16]}"

    @property
    def salt(self) -> str:
        """Of their prefix cache: keys and values of other weights are never found under it. vLLM takes no `@` in it."""
        return stable_hash(self.label)[:32]


def folder_weights(folder: Path, version: PolicyVersion) -> tuple[PolicyVersion, Mapping[str, Any]]:
    """The folder's weights, and `version` with their checksum. Raises: UserError where it names others."""
    from rollout.engines.torch.checkpoint import checksum, load_state

    state = load_state(folder)
    found = checksum(state)
    if version.checksum and version.checksum != found:
        raise UserError(f"{folder}: its weights have checksum {found[:12]}, but {version} is {version.checksum[:12]}")
    return PolicyVersion(version.policy, version.incarnation, version.number, found), state


def named(version: PolicyVersion, state: Mapping[str, Any]) -> PolicyVersion:
    """`version`, with the checksum of its weights where it has none."""
    from rollout.engines.torch.checkpoint import checksum

    if version.checksum:
        return version
    return PolicyVersion(version.policy, version.incarnation, version.number, checksum(state))


def check_shapes(state: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], tied: bool) -> None:
    """Raises: ValueError naming what is missing, unknown or of another shape than the model folder has."""
    optional = {"lm_head.weight"} if tied else set()  # a tied head may be given twice
    missing = sorted(wanted.keys() - state.keys() - optional)
    unknown = sorted(state.keys() - wanted.keys() - optional)
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems = [f"{what}: {', '.join(names[:3])}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
    if problems or wrong:
        raise ValueError("weights do not fit the model: " + "; ".join(problems + wrong[:3]))


def check_answer(probe: Probe, found: Sequence[float], precision: str) -> None:
    """Raises: UpdateRefused where what is served does not answer as the trainer's weights do."""
    difference = np.abs(np.array(found) - np.array(probe.logprobs))
    exact = probe.exact and precision == "float32"
    off, allowed = (difference.max(), CLOSE) if exact else (difference.mean(), MEAN)
    if not off <= allowed:
        kind = "largest" if exact else "mean"
        raise UpdateRefused(f"the probe's logprobs are off by {off:.3g} ({kind} difference), more than {allowed}")
