"""How long replies get, how long computing takes, and what goes wrong: frozen data that pickles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from envfarm.seeding import generator
from rollout.types import SamplingParams

LETTERS = (97, 123)
"""Ids of the tokens that replies are made of: a to z, where a token is a byte."""

LengthModel = Callable[[Sequence[int], SamplingParams], int]


@dataclass(frozen=True)
class Lengths:
    """Tokens of a reply, stop token included: lognormal. `sampling.max_tokens` is the cap."""

    median: float = 32.0
    sigma: float = 1.0  # of the logarithm; 0 makes all alike

    def __call__(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        drawn = draws("length", prompt_ids, params).standard_normal()
        return max(1, round(self.median * math.exp(self.sigma * drawn)))


@dataclass(frozen=True)
class Latency:
    """Seconds, about those of a few billion weights on one accelerator."""

    base_s: float = 0.012  # of a step, whoever is in it: reading the weights
    request_s: float = 0.00002  # more for each request in flight
    prefill_s: float = 0.00002  # per prompt token, once; everybody waits
    update_s: float = 0.5  # of new weights; everybody waits

    def step_s(self, in_flight: int) -> float:
        return self.base_s + self.request_s * in_flight


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and when: seconds since the engine's start, updates as counted from 0."""

    deaths_s: tuple[float, ...] = ()  # what is in flight then fails with InfraError; what comes meanwhile waits until
    restart_s: float = 5.0  # later, when it is up again with the weights that it had; infinite: InfraError for all
    refused_updates: frozenset[int] = frozenset()  # raise ValueError; the weights before stay
    slow_updates: Mapping[int, float] = field(default_factory=dict)  # seconds more


def draws(what: str, prompt_ids: Sequence[int], params: SamplingParams) -> np.random.Generator:
    """A generator for one thing about one reply, the same for the same prompt and seed."""
    return generator("simulated", what, crc32(np.asarray(prompt_ids, np.int64).tobytes()), params.seed)
