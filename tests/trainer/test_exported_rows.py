"""What other trainers are given is what ours trains on: the same tokens, advantages and logprobs, and so the same loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rollout.export import export, exporter
from rollout.export.base import Played, Totals, played, totals
from rollout.store import Store
from tests.rollout.export.stores import chatty, play
from trainer.batch import Datum, datum, micro_batches
from trainer.groups import make_batch
from trainer.losses import LossConfig, clipped


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Played]:
    store = play(tmp_path_factory.mktemp("rows") / "store", chatty(), groups=10, size=6)
    return list(played(Store.open(store).episodes()))


def ours(groups: list[Played]) -> list[Datum]:
    """Rows with an advantage, as `envfarm train` makes them."""
    batches = [
        make_batch(g.group, ["agent"], discount=1.0, baseline="group_mean", divide_by_std=False, divisor=1.0) for g in groups
    ]
    return [d for batch in batches for d in batch.data]


def from_datasets(folder: Path) -> list[Datum]:
    return [
        datum(r["token_ids"], r["mask"], logprobs=r["logprobs"], advantage=r["advantage"])
        for r in pq.read_table(folder / "train.parquet").to_pylist()
        if r["advantage"]
    ]


def from_tinker(folder: Path) -> list[Datum]:
    found = []
    for line in (folder / "datums.jsonl").read_text().splitlines():
        record = json.loads(line)
        inputs = {name: np.array(values) for name, values in record["loss_fn_inputs"].items()}
        if inputs["advantages"].any():
            found.append(
                Datum(
                    np.array(record["model_input"], np.int64), inputs["target_tokens"].astype(np.int64),
                    inputs["weights"].astype(np.float32), inputs["logprobs"].astype(np.float32),
                    inputs["advantages"].astype(np.float32),
                )
            )  # fmt: skip
    return found


def from_verl(folder: Path) -> list[Datum]:
    found = []
    for record in pq.read_table(folder / "rows.parquet").to_pylist():
        before, response = record["prompt_ids"], record["response_ids"]
        mask = [0] * len(before) + record["response_mask"]
        logprobs = [0.0] * len(before) + record["rollout_log_probs"]
        if record["advantage"]:
            found.append(datum(before + response, mask, logprobs=logprobs, advantage=record["advantage"]))
    return found


def loss(data: list[Datum]) -> float:
    """Our clipped loss under weights that differ from the sampler's by an amount that depends on the token alone."""
    total = 0.0
    for batch in micro_batches(data, max_tokens=4096, dtype=torch.float64):
        assert batch.sampled_N is not None and batch.advantages_N is not None
        moved_N = batch.sampled_N + 0.5 * torch.sin(batch.targets_N.double())
        terms = clipped(
            moved_N, sampled_N=batch.sampled_N, advantages_N=batch.advantages_N, weights_N=batch.weights_N, config=LossConfig()
        )
        total += float(terms.loss_N.sum())
    return total


def test_our_trainer_counts_what_exporters_count(groups: list[Played]) -> None:
    found = Totals()
    for d in ours(groups):
        assert d.advantages is not None
        found += Totals(d.trained, float(d.advantages.sum(dtype=np.float64)))
    expected = totals(row for g in groups for row in g.rows if row.advantage != 0.0)
    assert found.tokens == expected.tokens > 0
    assert found.advantage == pytest.approx(expected.advantage, rel=1e-5)


READERS = {"datasets": from_datasets, "tinker": from_tinker, "verl": from_verl}


@pytest.mark.parametrize("name", READERS)
def test_the_loss_of_exported_rows_is_the_loss_of_ours(name: str, groups: list[Played], tmp_path: Path) -> None:
    export(exporter(name), groups, tmp_path / "out")
    expected, found = loss(ours(groups)), loss(READERS[name](tmp_path / "out"))
    assert abs(expected) > 1.0
    assert found == pytest.approx(expected, rel=1e-5)
