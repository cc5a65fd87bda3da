"""verl: `prompts.parquet` for its `RLHFDataset`, `agent.yaml` that plays them, `rows.parquet` with what was sampled.

A prompt row is one instance (and seat): verl repeats it `rollout.n` times, and the whole instance is in `extra_info`,
so the group shares it. The observation in `prompt` is for people and for verl's length filter: when the row is played
(`trainer.adapters.verl`), the environment is asked, and its answer rendered by our renderer.

Training rows are cut as verl cuts them: `prompt_ids` up to the first sampled token, the response from there to the last
one. `padded` lays rows out as verl's agent-loop worker does, for whoever feeds them to its losses.

    python -m rollout.export.verl games/maze-v0 --split train --count 1000 --output data/maze     # no store needed
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envfarm.errors import UserError
from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.spec import EnvSpec, Instance
from rollout.export.base import Played, Totals, lacks, totals_of_arrays
from rollout.export.files import Table
from rollout.export.messages import messages_of
from rollout.rows import Row

PROMPTS, ROWS, AGENT = "prompts.parquet", "rows.parquet", "agent.yaml"

AGENT_YAML = """\
# actor_rollout_ref.rollout.agent.agent_loop_config_path: this file, by its absolute path
- name: envfarm
  _target_: trainer.adapters.verl.EnvfarmAgentLoop
  renderer: chatml      # of the model's chat template
  max_tokens: 0         # of one reply; 0: what is left of the response
  others: random        # who plays the roles that are not trained: oracle, random or null
  workers: 1            # processes that run environments, per agent-loop worker of verl
"""

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
PROMPT_SCHEMA = pa.schema([
    ("data_source", pa.string()), ("prompt", pa.list_(_MESSAGE)), ("ability", pa.string()),
    ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
    ("extra_info", pa.struct([
        ("index", pa.int64()), ("split", pa.string()), ("env", pa.string()), ("seat", pa.string()),
        ("instance", pa.string()), ("instance_hash", pa.string()), ("need_tools_kwargs", pa.bool_()),
    ])),
    ("agent_name", pa.string()),
])  # fmt: skip
ROW_SCHEMA = pa.schema([
    ("uid", pa.string()), ("episode", pa.string()), ("seat", pa.string()), ("branch", pa.int32()),
    ("prompt_ids", pa.list_(pa.int32())), ("response_ids", pa.list_(pa.int32())), ("response_mask", pa.list_(pa.int8())),
    ("rollout_log_probs", pa.list_(pa.float64())), ("temperature", pa.float32()), ("reward_score", pa.float64()),
    ("advantage", pa.float64()), ("num_turns", pa.int32()), ("stop", pa.string()),
])  # fmt: skip


class Verl:
    """Keeps every row; a store of logs gives prompts alone."""

    name = "verl"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        """Returns the number of prompts. Raises: UserError where the store is empty."""
        seen: set[tuple[str, str]] = set()
        with Table(folder / PROMPTS, PROMPT_SCHEMA) as prompts, Table(folder / ROWS, ROW_SCHEMA) as rows:
            for group in groups:
                for prompt in _prompts_of(group, seen):
                    prompts.add(prompt)
                for row in group.rows:
                    rows.add(_row(row))
        if not seen:
            raise lacks(self.name, "episodes", "roll some out")
        (folder / AGENT).write_text(AGENT_YAML, encoding="utf-8")
        return len(seen)

    def select(self, group: Played) -> list[Row]:
        return group.rows

    def totals(self, folder: Path) -> Totals:
        result = Totals()
        for row in read_rows(folder):
            result += totals_of_arrays(row["response_mask"], row["advantage"])
        return result


def split_row(row: Row) -> tuple[list[int], list[int], list[int], list[float]]:
    """A row as verl cuts it: prompt ids, then response ids, mask and logprobs from the first sampled token to the last.

    What the environment said after the last reply is left out, so that the outcome reward, which verl puts on the
    last token of the response, lies on a trained one.
    """
    where = np.flatnonzero(row.mask)
    first, end = int(where[0]), int(where[-1]) + 1
    ids = row.token_ids.tolist()
    return ids[:first], ids[first:end], row.mask[first:end].astype(int).tolist(), row.logprobs[first:end].tolist()


def padded(rows: Sequence[Row], *, prompt_length: int, response_length: int, pad_id: int = 0) -> dict[str, np.ndarray]:
    """R rows as verl's agent-loop worker hands them on: prompts padded on the left, responses on the right.

    int64 [R, P], [R, Q] and [R, P + Q]; float32 [R, Q] `rollout_log_probs`, `rm_scores` (the reward, on the last token)
    and `advantages` (0 where not trained). Raises: UserError naming a row that does not fit.
    """
    P, Q, R = prompt_length, response_length, len(rows)
    arrays: dict[str, np.ndarray] = {
        "prompts": np.full((R, P), pad_id, np.int64), "responses": np.full((R, Q), pad_id, np.int64),
        "response_mask": np.zeros((R, Q), np.int64), "attention_mask": np.zeros((R, P + Q), np.int64),
        "rollout_log_probs": np.zeros((R, Q), np.float32), "rm_scores": np.zeros((R, Q), np.float32),
    }  # fmt: skip
    for r, row in enumerate(rows):
        prompt, response, mask, logprobs = split_row(row)
        p, q = len(prompt), len(response)
        if p > P or q > Q:
            raise UserError(f"{row.episode_id}: {p} + {q} tokens do not fit prompt_length {P} and response_length {Q}")
        arrays["prompts"][r, P - p :] = prompt
        arrays["responses"][r, :q] = response
        arrays["response_mask"][r, :q] = mask
        arrays["attention_mask"][r, P - p : P + q] = 1
        arrays["rollout_log_probs"][r, :q] = logprobs
        arrays["rm_scores"][r, q - 1] = row.reward
    arrays["input_ids"] = np.concatenate([arrays["prompts"], arrays["responses"]], axis=1)
    arrays["position_ids"] = np.maximum(arrays["attention_mask"].cumsum(axis=1) - 1, 0)
    advantage_R = np.array([row.advantage for row in rows], np.float32)
    arrays["advantages"] = arrays["response_mask"].astype(np.float32) * advantage_R[:, None]
    return arrays


def write_instances(
    spec: EnvSpec, folder: Path, *, split: str = "train", count: int = 1000, first: int = 0,
    setting: dict[str, Any] | None = None, seat: str | None = None, backend: str = "bubblewrap",
) -> int:  # fmt: skip
    """`prompts.parquet` and `agent.yaml` without a store: `count` instances of a split, in order. The folder may exist.

    Each instance is reset once, for the observation in `prompt`. Raises: UserError on an unknown split or seat.
    """
    roles = list(spec.roles) if seat is None else [seat]
    if unknown := [r for r in roles if r not in spec.roles]:
        raise UserError(f"{spec.id} has no role {unknown[0]!r}; it has {', '.join(spec.roles)}")
    last = min(first + count, spec.size(split))
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    with Table(folder / PROMPTS, PROMPT_SCHEMA) as prompts:
        for index in range(first, last):
            instance = spec.instance(split, index, setting)
            shown = first_observation(spec, instance, backend=backend)
            for role in roles:
                prompts.add(_prompt(written, instance, role, shown))
                written += 1
    (folder / AGENT).write_text(AGENT_YAML, encoding="utf-8")
    return written


def first_observation(spec: EnvSpec, instance: Instance, *, backend: str = "bubblewrap") -> str:
    """What whoever acts first is shown. Raises: EpisodeError where the environment's code raises."""
    session = local_session(spec, backend=backend)
    try:
        return session.reset(instance).text
    finally:
        session.close()


def _prompts_of(group: Played, seen: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """One record per seat of an instance that was not met before; seats that are trained, or all where nothing is."""
    episode = group.group.episodes[0]
    told = []
    for seat in sorted({row.seat for row in group.rows} or set(episode.seats)):
        key = (episode.instance_hash, seat)
        if key not in seen:
            shown = next((m["content"] for m in messages_of(episode, seat)), "")
            told.append(_prompt(len(seen), msgspec.convert(episode.instance, Instance), seat, shown))
            seen.add(key)
    return told


def _prompt(index: int, instance: Instance, seat: str, shown: str) -> dict[str, Any]:
    return {
        "data_source": instance.env, "prompt": [{"role": "user", "content": shown}], "ability": instance.env.partition("/")[0],
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {
            "index": index, "split": instance.split, "env": instance.env, "seat": seat, "instance": instance.to_json(),
            "instance_hash": instance.hash, "need_tools_kwargs": False,
        },
        "agent_name": "envfarm",
    }  # fmt: skip


def _row(row: Row) -> dict[str, Any]:
    prompt, response, mask, logprobs = split_row(row)
    sampled = row.temperature[row.mask]
    return {
        "uid": f"{row.group}/{row.seat}", "episode": row.episode_id, "seat": row.seat, "branch": row.branch,
        "prompt_ids": prompt, "response_ids": response, "response_mask": mask, "rollout_log_probs": logprobs,
        "temperature": float(sampled[0]), "reward_score": row.reward, "advantage": row.advantage, "num_turns": 2 * row.turns,
        "stop": row.stop.value,
    }  # fmt: skip


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The training rows of an export, one record per row; none where it was made of logs."""
    if not (folder / ROWS).exists():
        return
    for batch in pq.ParquetFile(folder / ROWS).iter_batches():
        yield from batch.to_pylist()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rollout.export.verl", description=write_instances.__doc__)
    parser.add_argument("env", help="id, YAML file or folder")
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--setting", type=json.loads, default={}, help="JSON, as in a run file: '{\"rung\": 0}'")
    parser.add_argument("--seat", help="the role that is trained; default: every role")
    given = parser.parse_args(arguments)
    spec = default_registry().get(given.env)
    count = write_instances(
        spec, given.output, split=given.split, count=given.count, first=given.first, setting=given.setting, seat=given.seat
    )
    print(f"{count} prompts in {given.output / PROMPTS}")


if __name__ == "__main__":
    main()
