"""An environment outside the repository with code of its own, a model folder, and a cluster of three nodes on one host.

The environment's first action waits until the file `open` is in its gate (a folder), so that a test says when episodes
go on; before it waits it leaves a file of its own there, so that the test knows that it got so far.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from envfarm.spec import EnvSpec, load_spec
from rollout.build import ModelFolder
from rollout.requests import EnvChoice, draw_groups
from rollout.tokenizers import BPETokenizer
from rollout.types import Episode, SamplingParams

SAY_YAML = """\
envfarm: 1
id: outside/say-v0
title: Say the word that is asked for
entry: ./say.py:Say
randomize: {{word: {{choice: [north, south, east, west]}}, gate: {gate}}}
splits: {{train: {{seeds: {{start: 0, count: 100000}}}}}}
limits: {{turns: 4, episode_timeout_s: 250}}
"""
SAY = '''\
import os, time, uuid

from envfarm.env import Env
from envfarm.tools import ToolCall, tool

from .words import question


class Say(Env):
    text_tool = "say"

    def start(self):
        self.heard = 0
        return question(self.params["word"])

    @tool
    def say(self, text: str) -> str:
        """Say it.

        text: the word
        """
        self.heard += 1
        gate = self.params["gate"]
        if self.heard == 1 and not os.path.exists(f"{gate}/open"):
            open(f"{gate}/{uuid.uuid4().hex}", "w").close()
            while not os.path.exists(f"{gate}/open"):
                time.sleep(0.01)
        if text == self.params["word"]:
            self.end(1.0)
        return question(self.params["word"])

    def oracle(self):
        return ToolCall("say", {"text": self.params["word"]})
'''
WORDS = 'def question(word):\n    return f"Say {word}."\n'
ENV = "outside/say-v0"


class Gate:
    """A folder that episodes wait for."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def open(self) -> None:
        (self.folder / "open").touch()

    @property
    def waiting(self) -> int:
        """Episodes that came to it while it was closed."""
        return sum(p.name != "open" for p in self.folder.iterdir())


def outside(folder: Path, gate: Gate) -> EnvSpec:
    """The environment, in a folder that holds all there is of it."""
    folder.mkdir()
    (folder / "say.yaml").write_text(SAY_YAML.format(gate=json.dumps(str(gate.folder))))
    (folder / "say.py").write_text(SAY)
    (folder / "words.py").write_text(WORDS)
    return load_spec(folder / "say.yaml")


def model_folder(folder: Path, seed: int) -> ModelFolder:
    """A decoder of random weights, but for one thing: replies are short, and not empty."""
    from rollout.engines.torch.config import ModelConfig
    from rollout.engines.torch.model import Decoder
    from rollout.renderers.compact import CompactRenderer

    tokenizer = BPETokenizer.train(["Say north.", "Say south.", "Say east.", "Say west."] * 4, vocab_size=280)
    config = ModelConfig(
        vocab=tokenizer.vocab_size, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, max_len=256, tie=False
    )  # fmt: skip
    decoder = Decoder(config, seed=seed)
    state = decoder.state_dict()
    for name, weight in state.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[0] = 0.0
    renderer = CompactRenderer(tokenizer)
    state["model.embed_tokens.weight"][:, 0] = 2.0  # what positions have in common, and no layer changes ...
    state["model.embed_tokens.weight"][renderer.generation_prompt()[-1], 0] = 0.0  # ... but for a reply's beginning ...
    state["lm_head.weight"][:, 0] = 0.0
    state["lm_head.weight"][renderer.stop_ids[0], 0] = 2.4  # ... speaks for the end
    decoder.replace(state)
    decoder.save(folder)
    tokenizer.save(folder)
    (folder / "envfarm.json").write_text(json.dumps({"renderer": "compact"}))
    return ModelFolder.open(folder)


def requests(spec: EnvSpec, groups: int, size: int, *, stage: str = "rollout", policy: str = "learner") -> list[Any]:
    return draw_groups(
        [EnvChoice(spec, {"agent": policy})], seed=5, stage=stage, step=0, groups=groups, size=size,
        sampling=SamplingParams(max_tokens=16),
    )  # fmt: skip


def plain(episodes: list[Episode]) -> list[dict[str, Any]]:
    """All of them but the wall clock."""
    told = [msgspec.to_builtins(e) for e in episodes]
    return [{k: v for k, v in e.items() if k != "timings"} for e in told]


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """For what happens in other processes and tells nobody."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {timeout_s} s in vain: {what}") from None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def gone(processes: list[psutil.Process], timeout_s: float = 60.0) -> bool:
    return not psutil.wait_procs(processes, timeout=timeout_s)[1]


@contextmanager
def three_nodes() -> Iterator[Any]:
    """A head and two more nodes, each with room for two replicas."""
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    Path(get_default_ray_temp_dir()).mkdir(exist_ok=True)  # `Cluster` leaves its address there, wherever its own files are
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # socket paths are short
    node = {"num_cpus": 2, "object_store_memory": 100 << 20}
    client_port = free_port()
    head = {"include_dashboard": False, "temp_dir": folder, "ray_client_server_port": client_port}
    cluster = Cluster(initialize_head=True, head_node_args=node | head)
    cluster.client_address = f"ray://127.0.0.1:{client_port}"
    try:
        for name in ("b", "c"):
            cluster.add_node(**node, resources={name: 2.0})
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
