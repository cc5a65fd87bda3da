"""What the loops share: the run file, where the run stands, and the things that cost something to make."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from envfarm.spec import EnvSpec
from rollout.renderers.base import Renderer
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.tokenizers import HFTokenizer
from trainer.checkpoint import Checkpoints, RunState
from trainer.client import AdamParams, TrainingClient
from trainer.metrics import Metrics
from trainer.progress import Screen
from trainer.run import Optimizer, RunFile

T = TypeVar("T")


@dataclass
class Context:
    run: RunFile
    specs: Mapping[str, EnvSpec]
    run_dir: Path
    state: RunState
    checkpoints: Checkpoints
    store: Store
    metrics: Metrics
    screen: Screen


@dataclass
class Trainee(Context):
    """A context with a model in it: what imitation, offline and online stages work on."""

    client: TrainingClient
    rollouts: Rollouts
    renderer: Renderer
    tokenizer: HFTokenizer
    stage: str = ""  # the name of the one under way
    saved: list[str] = field(default_factory=list)  # stages whose policies are on disk

    def commit(self) -> None:
        """Everything done so far is there after a kill."""
        self.checkpoints.commit(self.state, lambda folder: self.client.save_state(folder).result())

    async def publish(self) -> None:
        """The engine acts with the weights as they are now."""
        published = await done(self.client.publish())
        self.state.number = published.version.number
        await self.rollouts.publish(published.version, published.state, published.probe)

    def trained_seats(self) -> dict[str, list[str]]:
        """Environment -> the roles that the learner sits in."""
        return {
            spec.id: [role for role, name in self.run.seats_of(spec).items() if name == self.run.learner]
            for spec in self.specs.values()
        }


def adam(settings: Optimizer, step: int, *, total: int = 0, decay: float = 1.0) -> AdamParams:
    """The update's parameters at a step that counts from 0: a linear rise over `warmup` steps, then flat, or falling
    in a line to `decay` of the rate at step `total`."""
    rate = settings.lr * min(1.0, (step + 1) / max(settings.warmup, 1))
    if total > 1 and decay < 1.0:
        rate *= 1.0 - (1.0 - decay) * min(1.0, step / (total - 1))
    return AdamParams(learning_rate=rate, weight_decay=settings.weight_decay, grad_clip_norm=settings.clip_norm)


@contextlib.contextmanager
def timed(wall_s: dict[str, float], kind: str) -> Iterator[None]:
    """Adds the seconds inside to `wall_s[kind]`."""
    began = time.monotonic()
    try:
        yield
    finally:
        wall_s[kind] = wall_s.get(kind, 0.0) + time.monotonic() - began


async def done(future: Future[T]) -> T:
    """A client's future, awaited without holding up the loop."""
    return await asyncio.wrap_future(future)
