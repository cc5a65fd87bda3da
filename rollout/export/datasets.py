"""Hugging Face datasets: one Parquet file per split and a card that names them; `datasets.load_dataset(DIR)` reads it.

    from datasets import load_dataset
    rows = load_dataset("DIR", split="train")
    rows[0]["messages"], rows[0]["token_ids"], rows[0]["mask"]

A record is one training row: a branch of an ok episode, as text (`messages` in OpenAI's shape, `tools` as a JSON string)
and as tokens (`token_ids`, `mask` where a policy sampled and this row trains, `logprobs`, `versions`; all equally long).
A conversation without tokens (logs of scripts) is a record too, with these four null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollout.export.base import Played, Totals, lacks, totals_of_arrays
from rollout.export.files import Table
from rollout.export.messages import messages_of, row_messages, tools_of
from rollout.rows import Row
from rollout.types import Episode

_CALL = pa.struct([
    ("id", pa.string()), ("type", pa.string()),
    ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
])  # fmt: skip
_MESSAGE = pa.struct([
    ("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string()), ("tool_calls", pa.list_(_CALL)),
    ("tool_call_id", pa.string()), ("name", pa.string()),
])  # fmt: skip

SCHEMA = pa.schema([
    ("messages", pa.list_(_MESSAGE)),
    ("tools", pa.string()),
    ("token_ids", pa.list_(pa.int32())),
    ("mask", pa.list_(pa.bool_())),
    ("logprobs", pa.list_(pa.float32())),  # 0 where not masked
    ("versions", pa.list_(pa.int32())),  # number of the weights that sampled the token; -1 where not masked
    ("advantage", pa.float64()),
    ("reward", pa.float64()),
    ("success", pa.bool_()),
    ("stop", pa.string()),
    ("truncated", pa.bool_()),
    ("env", pa.string()),
    ("instance", pa.string()),
    ("seat", pa.string()),
    ("policy", pa.string()),  # who sat there, with its version at the start
    ("stage", pa.string()),
    ("step", pa.int64()),
    ("group", pa.string()),
    ("episode_id", pa.string()),
    ("branch", pa.int32()),
])  # fmt: skip

CARD = """---
configs:
- config_name: default
  data_files:
{files}
---
Episodes of text environments, one record per conversation, written by `envfarm export --to datasets`.
Where a policy sampled, `token_ids` are the exact tokens and `mask` says which of them are trained.
"""


class Datasets:
    """Keeps every row; writing and reading need nothing but pyarrow."""

    name = "datasets"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        files: dict[str, Table] = {}
        count = 0
        with ExitStack() as stack:
            for group in groups:
                for episode, record in _records(group):
                    split = episode.split
                    if split not in files:
                        files[split] = stack.enter_context(Table(folder / f"{split}.parquet", SCHEMA))
                    files[split].add(record)
                    count += 1
        if not count:
            raise lacks(self.name, "finished episodes with at least one action", "`envfarm store info` says what it holds")
        listed = "\n".join(f"  - split: {split}\n    path: {split}.parquet" for split in files)
        (folder / "README.md").write_text(CARD.format(files=listed), "utf-8")
        return count

    def select(self, group: Played) -> list[Row]:
        return group.rows

    def totals(self, folder: Path) -> Totals:
        result = Totals()
        for path in sorted(folder.glob("*.parquet")):
            for record in pq.read_table(path, columns=["mask", "advantage"]).to_pylist():
                result += totals_of_arrays(record["mask"] or [], record["advantage"])
        return result


def _records(group: Played) -> Iterator[tuple[Episode, dict[str, Any]]]:
    for episode in group.group.episodes:
        if not episode.ok:
            continue
        rows = [row for row in group.rows if row.episode_id == episode.id]
        for row in rows:
            tokens = {
                "token_ids": row.token_ids, "mask": row.mask, "logprobs": row.logprobs.astype(np.float32),
                "versions": versions_of(row), "branch": row.branch, "advantage": row.advantage,
            }  # fmt: skip
            yield episode, _about(episode, row.seat, row_messages(episode, row)) | tokens
        for seat in episode.seats if not episode.nodes else ():
            talk = messages_of(episode, seat)
            if talk:
                yield episode, _about(episode, seat, talk)


def _about(episode: Episode, seat: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "messages": messages, "tools": json.dumps(tools_of(episode)), "reward": episode.reward.get(seat, 0.0),
        "success": episode.success.get(seat, False), "stop": str(episode.stop), "truncated": episode.truncated,
        "env": episode.env, "instance": episode.instance_hash, "seat": seat, "policy": str(episode.seats[seat]),
        "stage": episode.stage, "step": episode.step, "group": episode.group, "episode_id": episode.id,
        "branch": 0, "advantage": 0.0,
    }  # fmt: skip


def versions_of(row: Row) -> np.ndarray:
    """int32 [T]: the number of the version that sampled each trained token, -1 elsewhere."""
    numbers = np.full(len(row), -1, np.int32)
    for start, version in row.versions:
        numbers[start:] = version.number
    numbers[~row.mask] = -1
    return numbers
