"""RLlib's offline episodes: `DIR/<environment>/episodes.parquet`, a binary column `item`, one row per episode.

Each item is `msgpack.packb(SingleAgentEpisode.get_state(), default=msgpack_numpy.encode)` (Ray 2.60), which BC, MARWIL and
others read with `offline_data(input_=[DIR/<environment>], input_read_episodes=True)`; `trainer.rllib.offline` gives that
and the rest of the settings. The state is plain data, so it is written here without Ray, and a test compares it with
what Ray's own class gives.

Observations and actions are those of `rollout.flat`, as `trainer.rllib.register` gives them to a live environment: what
is trained offline plays online. Every ok episode with at least one action is written, logs of scripts included. Its
rewards add up to the stored reward: what a verdict brought after the last action is added to that action's. An episode
that ended without the environment's word (a token limit) counts as truncated.

Whoever trains on these has no tokens; how many were trained, and their advantage, are kept in `custom_data`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envfarm.registry import default_registry
from envfarm.tools import ToolSpec
from rollout.export.base import Played, Totals, lacks, package, totals
from rollout.export.files import Table
from rollout.flat import Encoding
from rollout.policies import MALFORMED_CALL
from rollout.rows import Row
from rollout.types import Episode, Step

FILE = "episodes.parquet"
KEY = b"envfarm"
"""In the file's metadata: which environment, and its actions as text, in order."""


class RLlib:
    """`encoding_of` gives the encoding of an environment's id; by default `Encoding.of` what the registry has."""

    name = "rllib"
    extra = "ray"

    def __init__(self, encoding_of: Callable[[str], Encoding] | None = None):
        registry = default_registry()
        self._encoding_of = encoding_of or (lambda env: Encoding.of(registry.get(env)))

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        pack = _packer()
        files: dict[str, tuple[Encoding, Table]] = {}
        count = 0
        with ExitStack() as stack:
            for group in groups:
                for episode in filter(_fits, group.group.episodes):
                    if episode.env not in files:
                        files[episode.env] = self._open(episode.env, folder, stack)
                    encoding, table = files[episode.env]
                    table.add({"item": pack(state_of(episode, encoding, _given(episode, group)))})
                    count += 1
        if not count:
            raise lacks(self.name, "finished episodes with at least one action", "`envfarm store info` says what it holds")
        return count

    def _open(self, env: str, folder: Path, stack: ExitStack) -> tuple[Encoding, Table]:
        encoding = self._encoding_of(env)
        (folder / env).mkdir(parents=True)
        return encoding, stack.enter_context(Table(folder / env / FILE, _schema(encoding)))

    def select(self, group: Played) -> list[Row]:
        return [row for row in group.rows if _fits(group.episode(row))]

    def totals(self, folder: Path) -> Totals:
        result = Totals()
        for path in sorted(folder.rglob(FILE)):
            for state in read(path):
                given = state["custom_data"]["envfarm"]
                result += Totals(given["tokens"], given["advantage"])
        return result


def read(path: Path) -> list[dict[str, Any]]:
    """The states in a file, as RLlib unpacks them."""
    msgpack, numpy_ = package("msgpack", extra="ray"), package("msgpack_numpy", extra="ray")
    items = pq.read_table(path)["item"].to_pylist()
    return [msgpack.unpackb(item, object_hook=numpy_.decode, strict_map_key=False) for item in items]


def state_of(episode: Episode, encoding: Encoding, given: Totals) -> dict[str, Any]:
    """What `SingleAgentEpisode.get_state()` gives of a finished episode. Raises: UserError where an action has no number,
    or the tools are shown under other names."""
    (seat,) = episode.seats
    shown = [ToolSpec(t["name"], t["description"], t["inputSchema"]) for t in episode.tools]
    allowed = encoding.allowed({t.name for t in shown})
    actions = [_number(encoding, step, shown) for step in episode.steps]
    texts = [*(step.observation for step in episode.steps), episode.final_observation]
    seen = zip(texts, [None, *actions], strict=True)
    observations = np.stack([encoding.observe(text, texts[0], last, allowed) for text, last in seen])
    rewards = np.array([step.reward.get(seat, 0.0) for step in episode.steps], np.float64)
    rewards[-1] += episode.reward.get(seat, 0.0) - rewards.sum()
    kept = {
        "env": episode.env, "instance": episode.instance_hash, "split": episode.split, "stage": episode.stage,
        "version": str(episode.seats[seat]), "tokens": given.tokens, "advantage": given.advantage,
    }  # fmt: skip
    return {
        "id_": episode.id, "agent_id": None, "module_id": None, "multi_agent_episode_id": None,
        "observations": _buffer(observations), "actions": _buffer(np.array(actions, np.int64)),
        "rewards": _buffer(rewards), "infos": _buffer([{} for _ in texts], finalized=False), "extra_model_outputs": None,
        "is_terminated": episode.terminated, "is_truncated": not episode.terminated, "t_started": 0, "t": len(actions),
        "_observation_space": None, "_action_space": None, "_start_time": None, "_last_step_time": None,
        "custom_data": {"envfarm": kept},
    }  # fmt: skip


def _number(encoding: Encoding, step: Step, shown: list[ToolSpec]) -> int:
    if step.malformed or any(c.name == MALFORMED_CALL for c in step.tool_calls):
        return encoding.nothing
    return encoding.number(step.tool_calls[0] if step.tool_calls else step.action, shown)


def _buffer(data: Any, *, finalized: bool = True) -> dict[str, Any]:
    return {"data": data, "lookback": 0, "finalized": finalized, "space": None}


def _fits(episode: Episode) -> bool:
    return episode.ok and bool(episode.steps)


def _given(episode: Episode, group: Played) -> Totals:
    return totals(row for row in group.rows if row.episode_id == episode.id)


def _schema(encoding: Encoding) -> pa.Schema:
    about = {"env": encoding.env, "actions": encoding.labels, "size": encoding.size}
    return pa.schema([("item", pa.binary())], metadata={KEY: json.dumps(about).encode()})


def _packer() -> Callable[[dict[str, Any]], bytes]:
    msgpack, numpy_ = package("msgpack", extra="ray"), package("msgpack_numpy", extra="ray")
    return lambda state: msgpack.packb(state, default=numpy_.encode)
