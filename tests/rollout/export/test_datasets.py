"""`datasets` reads what we write: by the card, split by split, with tokens and conversations as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rollout.export import export, exporter
from rollout.export.base import played
from rollout.export.messages import messages_of, row_messages
from rollout.rows import Row
from rollout.store import Store
from tests.rollout.export.stores import chatty, oracle, play


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("datasets") / "store"
    play(path, oracle(0.3), groups=2, size=2, stage="logs")
    play(path, chatty(), groups=4, size=3)
    return play(path, chatty(), groups=2, size=2, stage="eval/heldout", split="heldout")


@pytest.fixture(scope="module")
def written(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("datasets") / "out"
    export(exporter("datasets"), played(Store.open(store).episodes()), out)
    return out


def rows_of_split(store: Path, split: str) -> list[Row]:
    groups = played(Store.open(store).episodes(split=split))
    return [row for g in groups for row in g.rows]


def test_arrays_are_equally_long_and_ids_are_32_bit(store: Path, written: Path) -> None:
    table = pq.read_table(written / "train.parquet")
    assert str(table.schema.field("token_ids").type) == "list<element: int32>"
    records = [r for r in table.to_pylist() if r["token_ids"] is not None]
    for record, row in zip(records, rows_of_split(store, "train"), strict=True):
        assert record["token_ids"] == row.token_ids.tolist() and record["mask"] == row.mask.tolist()
        assert np.array(record["versions"])[row.mask].tolist() == [3] * row.trained
        assert set(np.array(record["versions"])[~row.mask]) <= {-1}
        assert not np.array(record["logprobs"])[~row.mask].any()
        np.testing.assert_allclose(record["logprobs"], row.logprobs, rtol=1e-6)


def test_logs_are_conversations_without_tokens(store: Path, written: Path) -> None:
    records = [r for r in pq.read_table(written / "train.parquet").to_pylist() if r["stage"] == "logs"]
    episodes = list(Store.open(store).episodes(stage="logs"))
    assert [r["episode_id"] for r in records] == [e.id for e in episodes] and all(r["token_ids"] is None for r in records)
    for record, episode in zip(records, episodes, strict=True):
        assert [(m["role"], m["content"]) for m in record["messages"]] == [
            (m["role"], m["content"]) for m in messages_of(episode, "agent")
        ]


@pytest.mark.trl
def test_load_dataset_reads_the_card_and_every_split(
    store: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Dataset, load_dataset

    loaded = load_dataset(str(written), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "heldout"}
    sampled = loaded["train"].filter(lambda r: r["token_ids"] is not None)
    rows = rows_of_split(store, "train")
    assert sampled["token_ids"][:] == [row.token_ids.tolist() for row in rows]
    assert loaded["train"].features["token_ids"].feature.dtype == "int32"
    shown = Store.open(store)
    for record, row in zip(sampled, rows, strict=True):
        wanted = row_messages(shown.get(row.episode_id), row)
        assert [{k: v for k, v in m.items() if v not in (None, [])} for m in record["messages"]] == wanted
        assert json.loads(record["tools"])[0]["function"]["name"] == "move"
    heldout = Dataset.from_parquet(str(written / "heldout.parquet"), cache_dir=str(tmp_path))
    assert len(heldout) == len(rows_of_split(store, "heldout"))
