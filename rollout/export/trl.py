"""Data sets for TRL's trainers: `trl-sft`, `trl-dpo` and `trl-kto`, each a folder with its data in two forms.

`*.jsonl` is text: conversations as TRL's trainers take them (`load_dataset("json", ...)`), rendered by the model's own
chat template. `tokens.parquet` is exact: the ids that were sampled, with what may be trained (`trainer.adapters.trl`
loads it and checks that the tokenizer is theirs). Logs of scripted policies have no tokens, and so the text alone.

| format | text | exact, one record per |
| --- | --- | --- |
| trl-sft | `messages.jsonl` (conversations), `replies.jsonl` (prompt, completion) | row: `input_ids`, `labels` |
| trl-dpo | `pairs.jsonl` (prompt, chosen, rejected) | pair: `prompt_ids`, `chosen_ids`, `rejected_ids` |
| trl-kto | `replies.jsonl` (prompt, completion, label) | reply: `prompt_ids`, `completion_ids`, `label` |

TRL trains every token of a completion, so a completion is one reply and nothing that the environment said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollout.export.base import Played, Totals, lacks, totals_of_arrays
from rollout.export.files import Lines, Table
from rollout.export.messages import messages_of, row_messages, tools_of
from rollout.export.replies import Reply, pairs, replies_of, row_replies, spoken
from rollout.rows import Row
from rollout.types import Episode

TOKENS = "tokens.parquet"
IGNORED = -100
"""The label of what is not trained."""

_IDS = pa.list_(pa.int32())
_ABOUT = [("env", pa.string()), ("group", pa.string()), ("episode_id", pa.string()), ("seat", pa.string())]
_SFT = pa.schema([
    ("input_ids", _IDS), ("labels", _IDS), ("replies", pa.list_(pa.string())), ("reward", pa.float64()),
    ("success", pa.bool_()), ("advantage", pa.float64()), *_ABOUT,
])  # fmt: skip
_DPO = pa.schema([
    ("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS), ("chosen_reply", pa.string()),
    ("rejected_reply", pa.string()), ("chosen_reward", pa.float64()), ("rejected_reward", pa.float64()),
    ("chosen_advantage", pa.float64()), ("rejected_advantage", pa.float64()), *_ABOUT,
])  # fmt: skip
_KTO = pa.schema([
    ("prompt_ids", _IDS), ("completion_ids", _IDS), ("label", pa.bool_()), ("reply", pa.string()),
    ("reward", pa.float64()), ("advantage", pa.float64()), *_ABOUT,
])  # fmt: skip


class Sft:
    """Everything that was said, with `reward` and `success` to filter by."""

    name = "trl-sft"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        with (
            Lines(folder / "messages.jsonl") as talks,
            Lines(folder / "replies.jsonl") as said,
            Table(folder / TOKENS, _SFT) as exact,
        ):
            for played in groups:
                for episode, seat, messages in _conversations(played):
                    talks.add({"messages": messages, **_about(episode, seat)})
                for replies in replies_of(played):
                    for reply in replies:
                        said.add(_prompt_completion(played, reply))
                for row in played.rows:
                    exact.add(_sft_record(played, row))
        if not talks.count:
            raise lacks(self.name, "episodes that ended well enough to have a reward", "`envfarm store info` says why they ended")
        return talks.count

    def select(self, group: Played) -> list[Row]:
        return group.rows

    def totals(self, folder: Path) -> Totals:
        found = (totals_of_arrays(np.array(r["labels"]) != IGNORED, r["advantage"]) for r in read(folder))
        return sum(found, Totals())


class Dpo:
    """Pairs from groups: two replies to the same history, of which one led to more reward."""

    name = "trl-dpo"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        with Lines(folder / "pairs.jsonl") as text, Table(folder / TOKENS, _DPO) as exact:
            for played in groups:
                for chosen, rejected in pairs(list(replies_of(played))):
                    text.add(_pair(played, chosen, rejected))
                    if chosen.row is not None:
                        exact.add(_dpo_record(played, chosen, rejected))
        if not text.count:
            raise lacks(self.name, "groups whose episodes got different rewards", "roll out with `--group 8` or more")
        return text.count

    def select(self, group: Played) -> list[Row]:
        said = pairs(list(replies_of(group)))
        return [reply.only() for pair in said for reply in pair if reply.row is not None]

    def totals(self, folder: Path) -> Totals:
        return sum(
            (Totals(len(r[f"{which}_ids"]), len(r[f"{which}_ids"]) * r[f"{which}_advantage"])
             for r in read(folder) for which in ("chosen", "rejected")),
            Totals(),
        )  # fmt: skip


class Kto:
    """Every reply, labelled by whether its episode succeeded."""

    name = "trl-kto"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        with Lines(folder / "replies.jsonl") as text, Table(folder / TOKENS, _KTO) as exact:
            for played in groups:
                for replies in replies_of(played):
                    for reply in replies:
                        record = _prompt_completion(played, reply)
                        text.add(record | {"label": record["success"]})
                        if reply.row is not None:
                            exact.add(_kto_record(played, reply))
        if not text.count:
            raise lacks(self.name, "episodes that ended well enough to have a reward", "`envfarm store info` says why they ended")
        return text.count

    def select(self, group: Played) -> list[Row]:
        return group.rows

    def totals(self, folder: Path) -> Totals:
        found = (Totals(len(r["completion_ids"]), len(r["completion_ids"]) * r["advantage"]) for r in read(folder))
        return sum(found, Totals())


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The exact records of an export; none where it has no tokens."""
    path = folder / TOKENS
    if path.exists():
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


# Records.


def _conversations(played: Played) -> Iterator[tuple[Episode, str, list[dict[str, Any]]]]:
    """One per row; one per ok episode and seat where nothing was sampled."""
    for row in played.rows:
        yield played.episode(row), row.seat, row_messages(played.episode(row), row)
    for episode in played.group.episodes:
        if episode.ok and not episode.nodes:
            for seat in episode.seats:
                if messages := messages_of(episode, seat):
                    yield episode, seat, messages


def _about(episode: Episode, seat: str) -> dict[str, Any]:
    """`tools` is JSON, as TRL takes it too: columns of a data set cannot hold schemas of different shapes."""
    tools = tools_of(episode)
    return {
        "tools": json.dumps(tools) if tools else None, "reward": episode.reward.get(seat, 0.0),
        "success": episode.success.get(seat, False), "env": episode.env, "group": episode.group,
        "episode_id": episode.id, "seat": seat,
    }  # fmt: skip


def _prompt_completion(played: Played, reply: Reply) -> dict[str, Any]:
    prompt, said = spoken(played, reply)
    return {"prompt": prompt, "completion": [said], **_about(_episode(played, reply), reply.seat)}


def _pair(played: Played, chosen: Reply, rejected: Reply) -> dict[str, Any]:
    prompt, better = spoken(played, chosen)
    about = _about(_episode(played, chosen), chosen.seat)
    del about["reward"], about["success"]
    return {
        "prompt": prompt, "chosen": [better], "rejected": [spoken(played, rejected)[1]],
        "chosen_reward": chosen.reward, "rejected_reward": rejected.reward, **about,
    }  # fmt: skip


def _episode(played: Played, reply: Reply) -> Episode:
    return next(e for e in played.group.episodes if e.id == reply.episode_id)


def _sft_record(played: Played, row: Row) -> dict[str, Any]:
    return {
        "input_ids": row.token_ids, "labels": np.where(row.mask, row.token_ids, IGNORED).astype(np.int32),
        "replies": [spoken(played, reply)[1]["content"] for reply in row_replies(row)],
        "reward": row.reward, "success": row.success, "advantage": row.advantage, **_place(row),
    }  # fmt: skip


def _dpo_record(played: Played, chosen: Reply, rejected: Reply) -> dict[str, Any]:
    assert chosen.row is not None
    return {
        "prompt_ids": chosen.prompt_ids, "chosen_ids": chosen.token_ids, "rejected_ids": rejected.token_ids,
        "chosen_reply": spoken(played, chosen)[1]["content"], "rejected_reply": spoken(played, rejected)[1]["content"],
        "chosen_reward": chosen.reward, "rejected_reward": rejected.reward,
        "chosen_advantage": chosen.advantage, "rejected_advantage": rejected.advantage, **_place(chosen.row),
    }  # fmt: skip


def _kto_record(played: Played, reply: Reply) -> dict[str, Any]:
    assert reply.row is not None
    return {
        "prompt_ids": reply.prompt_ids, "completion_ids": reply.token_ids, "label": reply.row.success,
        "reply": spoken(played, reply)[1]["content"], "reward": reply.reward, "advantage": reply.advantage,
        **_place(reply.row),
    }  # fmt: skip


def _place(row: Row) -> dict[str, str]:
    return {"env": row.env, "group": row.group, "episode_id": row.episode_id, "seat": row.seat}
