"""The peer, in its own environment: `python verifiers_side.py URL`. Each line on stdin is a number of rollouts to
play; each line on stdout is rollouts per second. A single-turn environment with one reward function, driven by the
library's own `evaluate`, as its documentation shows."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import sys
import time

import uvloop
import verifiers as vf
from datasets import Dataset

MOST = 4096


def right(completion: list[dict[str, str]], answer: str) -> float:
    return 1.0 if completion[-1]["content"] == answer else 0.0


def environment() -> vf.Environment:
    rows = [{"question": f"Answer with the number {i % 10}.", "answer": str(i % 10)} for i in range(MOST)]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[right], weights=[1.0]))


async def main() -> None:
    os.environ["STUB_KEY"] = "none"
    client = vf.ClientConfig(api_base_url=sys.argv[1], api_key_var="STUB_KEY")
    env, at_once = environment(), int(sys.argv[2])
    while line := await asyncio.to_thread(sys.stdin.readline):
        count, started = int(line), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outputs = await env.evaluate(client=client, model="stub", num_examples=count, max_concurrent=at_once)
        took = time.perf_counter() - started
        rewards = [o["reward"] for o in outputs["outputs"]]
        assert len(rewards) == count and 0 < sum(rewards) < count, "the peer did not play"
        print(count / took, flush=True)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    uvloop.run(main())
