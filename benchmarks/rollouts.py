"""Rollouts/s over `verifiers` 0.1.14: single turns, both sides driving one local HTTP server that answers at once.

The peer lives in an environment of its own (made once in the cache directory) and is driven by its own `evaluate`, at
64 at once; its other setting, no limit, is shown beside it. Ours plays the same questions with the `openai` engine and
64 in flight, without a store, as `evaluate` has none by default. Then everything in this process with an engine that
answers at once, tokens, logprobs and node tree included, over the peer's rollouts through the server; once more with
every episode made durable in a store.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import uvloop

from benchmarks.harness import Row, finish, measure
from benchmarks.instant import InstantEngine
from benchmarks.peers import peer_python
from benchmarks.serving import free_port, start
from envfarm.scenes import scene_class
from envfarm.session import local_session
from envfarm.spec import EnvSpec, load_spec
from rollout.engines.openai import OpenAIEngine
from rollout.inprocess import LocalPool
from rollout.plan import RunPlan
from rollout.policies import ChatPolicy, EnginePolicy, Policy
from rollout.renderers.compact import CompactRenderer
from rollout.requests import EnvChoice, draw_groups
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.tokenizers import BPETokenizer
from rollout.types import PolicyVersion, SamplingParams

HERE = Path(__file__).parent / "answer"
AT_ONCE = 64
COUNT, COUNT_IN_PROCESS = 256, 2000
PEER = "verifiers==0.1.14"


def peer(url: str, at_once: int, stack: ExitStack) -> Callable[[int], float]:
    """Plays so many rollouts and gives rollouts/s."""
    command = [str(peer_python(PEER, (PEER, "uvloop"))), str(HERE / "verifiers_side.py"), url, str(at_once)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def play(count: int) -> float:
        print(count, file=stdin, flush=True)
        return float(stdout.readline())

    return play


def ours(spec: EnvSpec, policy: Policy, count: int, store: Store | None = None) -> float:
    """Rollouts/s of one run."""

    async def run() -> float:
        requests = draw_groups(
            [EnvChoice(spec, {"agent": "policy"})], seed=0, stage="bench", step=0, groups=count, size=1,
            sampling=SamplingParams(max_tokens=8),
        )  # fmt: skip
        plan = RunPlan("bench", 0, {spec.id: spec}, max_in_flight=AT_ONCE)
        scene = scene_class(spec)
        pool = LocalPool(lambda env_id: local_session(spec, scene=scene(spec)))
        async with Rollouts(plan, pool, {"policy": policy}, store) as rollouts:
            started = time.perf_counter()
            groups = await rollouts.run(requests)
            took = time.perf_counter() - started
        solved = sum(e.reward["agent"] for g in groups for e in g.episodes)
        assert len(groups) == count and 0 < solved < count, "we did not play"
        return count / took

    return uvloop.run(run())


def in_process(spec: EnvSpec, *, stored: bool) -> float:
    tokenizer = BPETokenizer.train([f"Answer with the number {i}." for i in range(10)], vocab_size=300)
    renderer = CompactRenderer(tokenizer)
    policy = EnginePolicy(PolicyVersion("policy"), InstantEngine(renderer), renderer)
    if not stored:
        return ours(spec, policy, COUNT_IN_PROCESS)
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store") as store:
        return ours(spec, policy, COUNT_IN_PROCESS, store)


def main() -> None:
    spec = load_spec(HERE / "answer.yaml")
    with ExitStack() as stack:
        port = free_port()
        url = start([sys.executable, str(HERE / "stub.py"), str(port)], port, stack) + "/v1"
        theirs, unlimited = peer(url, AT_ONCE, stack), peer(url, -1, stack)

        def through_the_server() -> float:
            engine = OpenAIEngine(url, "stub", max_in_flight=AT_ONCE)
            return ours(spec, ChatPolicy(PolicyVersion("policy"), engine), COUNT)

        unit = "rollouts/s"
        rows: list[Row] = [
            measure("one server, 64 at once", through_the_server, lambda: theirs(COUNT), goal=">=3", unit=unit),
            measure("one server, the peer without a limit", through_the_server, lambda: unlimited(COUNT), unit=unit, rounds=3),
            measure("ours in process", lambda: in_process(spec, stored=False), lambda: theirs(COUNT), goal=">=30", unit=unit),
            measure("ours in process, stored as well", lambda: in_process(spec, stored=True), unit=unit, rounds=3),
        ]
    finish("rollouts", rows)


if __name__ == "__main__":
    main()
