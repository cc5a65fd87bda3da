"""Tinker: the SDK takes our datums, and its losses, computed from a datum's numbers alone, are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envfarm.errors import UserError
from rollout.export import export, exporter
from rollout.export.base import played
from rollout.export.tinker import datums, datums_of
from rollout.rows import Row
from rollout.store import Store
from tests.trainer.adapters.conftest import Farm
from trainer.batch import datum
from trainer.losses import LOSSES, LossConfig

pytestmark = pytest.mark.trl

CLIP = LossConfig(clip_low=0.2, clip_high=0.28)


@pytest.fixture(scope="module")
def rows(farm: Farm) -> list[Row]:
    return [row for g in played(Store.open(farm.store).episodes()) for row in g.rows]


@pytest.fixture(scope="module")
def folder(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tinker") / "out"
    export(exporter("tinker"), played(Store.open(farm.store).episodes()), out)
    return out


def test_the_sdk_takes_them_and_gives_them_back(folder: Path, rows: list[Row]) -> None:
    import tinker

    made = datums(folder)
    assert len(made) == len(rows) > 10
    for found, row in zip(made, rows, strict=True):
        assert isinstance(found, tinker.Datum)
        assert found.model_input.to_ints() == row.token_ids[:-1].tolist() and found.model_input.length == len(row) - 1
        inputs = found.loss_fn_inputs
        assert {k: v.dtype for k, v in inputs.items()} == {
            "target_tokens": "int64",
            "logprobs": "float32",
            "advantages": "float32",
        }
        assert inputs["target_tokens"].to_numpy().tolist() == row.token_ids[1:].tolist()
        again = {k: tinker.TensorData.from_torch(v.to_torch()) for k, v in inputs.items()}
        assert all(again[k].data == v.data and again[k].shape == [len(row) - 1] for k, v in inputs.items())
        where = row.mask[1:]
        assert np.allclose(inputs["logprobs"].to_numpy()[where], row.logprobs[1:][where], atol=1e-6)
        assert not inputs["logprobs"].to_numpy()[~where].any() and not inputs["advantages"].to_numpy()[~where].any()


def test_they_survive_the_wire(folder: Path) -> None:
    """Through the SDK's own protobuf, as a request goes out, and read back from its bytes."""
    from tinker import types
    from tinker.proto import tinker_public_pb2
    from tinker.proto.request_conv import forward_backward_request_to_proto

    data = datums(folder, "ppo")
    asked = types.ForwardBackwardRequest(types.ForwardBackwardInput(data=data, loss_fn="ppo"), model_id="m", seq_id=1)
    sent = tinker_public_pb2.ForwardBackwardRequest()
    sent.ParseFromString(forward_backward_request_to_proto(asked).SerializeToString())
    assert len(sent.data) == len(data) and sent.loss_fn == "ppo"
    for message, made in zip(sent.data, data, strict=True):
        tokens = np.frombuffer(message.model_input[0].encoded_text.tokens, np.int32)
        assert tokens.tolist() == made.model_input.to_ints()
        assert np.array_equal(
            np.frombuffer(message.loss_fn_inputs["advantages"].dense, np.float32), made.loss_fn_inputs["advantages"].to_numpy()
        )
        assert list(message.loss_fn_inputs["target_tokens"].shape) == [len(tokens)]


def test_live_rows_and_files_are_the_same(folder: Path, rows: list[Row]) -> None:
    for loss in ("cross_entropy", "importance_sampling", "ppo", "cispo"):
        for a, b in zip(datums(folder, loss, divisor=64), datums_of(rows, loss, divisor=64), strict=True):
            assert a.model_input.to_ints() == b.model_input.to_ints()
            assert a.loss_fn_inputs.keys() == b.loss_fn_inputs.keys()
            assert all(np.array_equal(a.loss_fn_inputs[k].to_numpy(), b.loss_fn_inputs[k].to_numpy()) for k in a.loss_fn_inputs)


def reference(loss: str, made: Any, logprobs: np.ndarray) -> float:
    """Tinker's losses as its documentation has them, summed, in NumPy, from nothing but a datum and new logprobs."""
    given = {k: v.to_numpy().astype(np.float64) for k, v in made.loss_fn_inputs.items()}
    if loss == "cross_entropy":
        return float(-(given["weights"] * logprobs).sum())
    ratio = np.exp(logprobs - given["logprobs"])
    if loss == "importance_sampling":
        return float(-(ratio * given["advantages"]).sum())
    clipped = np.clip(ratio, 1 - CLIP.clip_low, 1 + CLIP.clip_high)
    return float(-np.minimum(ratio * given["advantages"], clipped * given["advantages"]).sum())


def ours(loss: str, row: Row, logprobs: np.ndarray, divisor: float) -> float:
    function, _ = LOSSES[loss]
    d = datum(row.token_ids, row.mask, weight=1 / divisor, logprobs=row.logprobs, advantage=row.advantage)
    where = np.flatnonzero(d.weights)
    assert d.logprobs is not None and d.advantages is not None
    named: dict[str, Any] = {"weights_N": torch.from_numpy(d.weights[where]).double()}
    if loss != "cross_entropy":
        named["sampled_N"] = torch.from_numpy(d.logprobs[where]).double()
        named["advantages_N"] = torch.from_numpy(d.advantages[where]).double()
    if loss == "ppo":
        named["config"] = CLIP
    return float(function(torch.from_numpy(logprobs[where]), **named).loss_N.sum())


@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo"])
def test_the_loss_is_ours(loss: str, folder: Path, rows: list[Row]) -> None:
    """With the logprobs of other weights than those that sampled, so that ratios leave the clip on both sides."""
    rng = np.random.default_rng(4)
    theirs, own = 0.0, 0.0
    for made, row in zip(datums(folder, loss, divisor=32), rows, strict=True):
        logprobs = np.minimum(row.logprobs[1:] + rng.normal(0, 0.5, len(row) - 1), -1e-3)
        a, b = reference(loss, made, logprobs), ours(loss, row, logprobs, 32)
        assert a == pytest.approx(b, abs=1e-5)
        theirs, own = theirs + a, own + b
    assert theirs == pytest.approx(own, abs=1e-5) and abs(own) > 1e-3


def test_what_cannot_be_is_refused(folder: Path, rows: list[Row], tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="did you mean 'importance_sampling'"):
        datums(folder, "importance_sample")
    with pytest.raises(UserError, match="--to tinker"):
        datums(tmp_path)
    with pytest.raises(UserError, match="at temperature 1"):
        datums_of([replace(rows[0], temperature=rows[0].temperature * 0.5)])
