"""A trainer without a model, and a run around it: what is needed to try the loops by the hundreds of slots, without a GPU.

    trainee = simulated_trainee(run_dir, online={"async": True, "group": 8, "batch": 64, "steps": 20}, engine=engine)
    async with trainee.rollouts:
        await improve_async(trainee, "rl", trainee.run.stages[0].settings, no_curve)

Everything between engine and trainer is real: scheduler, store, batches, staleness, checkpoints. Time is the event
loop's, so under `rollout.virtual_time.run` it costs nothing. The environment takes one turn and pays by a hash of what was
said, for one instance more often than for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console

from envfarm.distributions import UniformInt
from envfarm.env import Scene
from envfarm.seeding import derive_seed, stable_hash
from envfarm.session import LocalSession
from envfarm.spec import Axis, EnvSpec, Limits, Split
from envfarm.tools import tool
from rollout.engines.simulated.engine import SimulatedEngine
from rollout.inprocess import LocalPool
from rollout.policies import EnginePolicy
from rollout.renderers.compact import CompactRenderer
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.tokenizers import BPETokenizer
from rollout.types import PolicyVersion
from trainer.batch import Datum
from trainer.checkpoint import Checkpoints, RunState
from trainer.client import AdamParams, ForwardOutput, Published, StepOutput
from trainer.context import Trainee
from trainer.losses import LossConfig
from trainer.metrics import Metrics
from trainer.progress import Screen
from trainer.run import RunFile

T = TypeVar("T")


class Saying(Scene):
    """Anything may be said, once. It pays with a chance that the instance has, by a hash of the words."""

    text_tool = "say"

    def start(self) -> str:
        return "Say something."

    @tool
    def say(self, text: str) -> str:
        """Say it."""
        luck = derive_seed("luck", text) / 2**63
        self.end(1.0 if luck < self.params["chance"] / 10 else 0.0)
        return "Well said."


SAYING = EnvSpec(
    id="simulated/saying-v0", path="/nowhere/env.yaml", files_hash="", hash=stable_hash("simulated/saying-v0"), entry="./x.py:X",
    axes={"chance": Axis(distribution=UniformInt(low=1, high=9))},  # of ten
    splits={"train": Split(start=0, count=1_000_000)}, limits=Limits(turns=1, episode_timeout_s=1e9),
)  # fmt: skip


class SimulatedClient:
    """Steps that take time: `token_s` for each token of a row in `forward_backward`, `step_s` for each update. The loss is
    0; versions are counted as a trainer does."""

    def __init__(self, *, token_s: float = 0.0, step_s: float = 0.0, policy: str = "learner", incarnation: int = 0):
        self.token_s, self.step_s, self.policy, self.incarnation = token_s, step_s, policy, incarnation
        self.number = 0
        self.stepped: Callable[[], None] = lambda: None  # called at the end of each update
        self._free = 0.0  # when the calls so far will be done

    def forward(self, data: list[Datum], loss: str = "cross_entropy", config: LossConfig | None = None) -> Future[ForwardOutput]:
        logprobs = [d.weights * 0 if d.logprobs is None else d.logprobs for d in data]
        return self._after(self.token_s * sum(map(len, data)), ForwardOutput(logprobs, 0.0, sum(d.trained for d in data)))

    def forward_backward(self, data: list[Datum], loss: str, config: LossConfig | None = None) -> Future[ForwardOutput]:
        return self.forward(data, loss, config)

    def optim_step(self, params: AdamParams) -> Future[StepOutput]:
        self.number += 1
        future = self._after(self.step_s, StepOutput(self.number, 0.0))
        future.add_done_callback(lambda _: self.stepped())
        return future

    def publish(self, kind: Literal["full", "lora"] = "full") -> Future[Published]:
        version = PolicyVersion(self.policy, self.incarnation, self.number, checksum=f"simulated {self.number}")
        return self._after(0.0, Published(version, None))

    def save_state(self, path: Path) -> Future[str]:
        future: Future[str] = Future()
        (path / "number").write_text(str(self.number))
        future.set_result(f"simulated {self.number}")
        return future

    def load_state(self, path: Path) -> Future[str]:
        self.number = int((path / "number").read_text())
        return self._after(0.0, f"simulated {self.number}")

    def load_weights(self, folder: Path) -> Future[str]:
        return self._after(0.0, f"simulated {self.number}")

    def close(self) -> None:
        pass

    def _after(self, seconds: float, result: T) -> Future[T]:
        """Calls are executed one after the other."""
        loop, future = asyncio.get_running_loop(), Future[T]()
        self._free = max(self._free, loop.time()) + seconds
        loop.call_at(self._free, _settle, future, result)
        return future


def _settle(future: Future[T], result: T) -> None:
    if not future.cancelled():
        future.set_result(result)


def simulated_run(online: Mapping[str, Any], *, slots: int, max_tokens: int, seed: int = 0) -> RunFile:
    """A run file with one online stage on `Saying`."""
    return RunFile.model_validate({
        "envfarm": 1, "run": "simulated", "seed": seed, "environments": [{"id": SAYING.id}],
        "policies": {"learner": {"model": {"init": {}}, "trainable": True}},
        "engine": {"kind": "simulated", "max_in_flight": slots}, "sampling": {"max_tokens": max_tokens},
        "stages": [{"online": dict(online)}], "evaluate": {"splits": ["train"]},
    })  # fmt: skip


def simulated_trainee(run: RunFile, run_dir: Path, engine: SimulatedEngine, client: SimulatedClient, store: Store) -> Trainee:
    """Goes on from the last checkpoint in `run_dir`, where there is one."""
    checkpoints = Checkpoints(run_dir)
    found = checkpoints.latest()
    state = RunState(run_hash="simulated") if found is None else found[0]
    if found is not None:
        state.incarnation += 1
        client.incarnation, client.number = state.incarnation, state.number
    tokenizer = BPETokenizer.train(["Say something.", "Well said."], vocab_size=300)
    renderer = CompactRenderer(tokenizer)
    version = PolicyVersion("learner", state.incarnation, state.number, f"simulated {state.number}")
    pool = LocalPool(lambda env_id: LocalSession(SAYING, Saying(SAYING)))
    specs = {SAYING.id: SAYING}
    rollouts = Rollouts(run.plan(specs), pool, {"learner": EnginePolicy(version, engine, renderer)}, store)
    return Trainee(
        run=run, specs=specs, run_dir=run_dir, state=state, checkpoints=checkpoints, store=store, metrics=Metrics(run_dir),
        screen=Screen(Console(quiet=True), "simulated"), client=client, rollouts=rollouts, renderer=renderer,
        tokenizer=tokenizer, stage="rl",
    )  # fmt: skip


async def no_curve(step: int) -> None:
    """No learning curve."""
