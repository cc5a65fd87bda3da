"""`--to tinker`: one JSON line per training row, holding what Tinker's `Datum` holds, for any of its losses.

    {"model_input": [ids], "loss_fn_inputs": {"target_tokens": [...], "weights": [...], "logprobs": [...],
     "advantages": [...]}, "episode_id": ..., "group": ..., "env": ..., "reward": ..., "reply": ...}

Pre-shifted, as `forward_backward` wants it: position t of `model_input` predicts `target_tokens[t]`. `weights` and
`advantages` are 0 on everything that no policy sampled. Tinker's losses are sums, so that normalisation is in the data:
`divisor` divides weights and advantages (the expected count of trained tokens of a batch, say).

    from rollout.export.tinker import datums
    training_client.forward_backward(datums("out", "importance_sampling", divisor=4096), "importance_sampling")

A server takes the keys of its loss and no others (`LOSSES`). Temperatures other than 1 are refused: the service computes
logprobs at temperature 1, and those recorded are of the distribution that was sampled from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envfarm.errors import UserError, did_you_mean
from rollout.export.base import NO_TOKENS, Played, Totals, lacks, package, totals_of_arrays
from rollout.export.files import Lines
from rollout.rows import Row

FILE = "datums.jsonl"

LOSSES: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("target_tokens", "weights"),
    "importance_sampling": ("target_tokens", "logprobs", "advantages"),
    "ppo": ("target_tokens", "logprobs", "advantages"),
    "cispo": ("target_tokens", "logprobs", "advantages"),
}
"""Tinker's loss -> the inputs that it takes."""


class Tinker:
    """Every row; `advantages` as our own trainer takes them by default."""

    name = "tinker"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        with Lines(folder / FILE) as file:
            for played in groups:
                for row in played.rows:
                    file.add(record(row, reply=_last_reply(played, row)))
        if not file.count:
            raise lacks(self.name, *NO_TOKENS)
        return file.count

    def select(self, group: Played) -> list[Row]:
        return group.rows

    def totals(self, folder: Path) -> Totals:
        inputs = (r["loss_fn_inputs"] for r in read(folder))
        return sum((totals_of_arrays(np.array(i["weights"]) != 0, i["advantages"]) for i in inputs), Totals())


def arrays(row: Row, *, divisor: float = 1.0) -> tuple[list[int], dict[str, np.ndarray]]:
    """(model_input, loss_fn_inputs with the keys of all losses), each as long as the row less one.

    Raises: UserError where the row was sampled at another temperature than 1, or from a part of the distribution.
    """
    if row.top_p < 1.0 or not np.all(row.temperature[row.mask] == 1.0):
        raise UserError(
            f"{row.episode_id}: sampled at temperature {float(row.temperature[row.mask][0]):g} and top_p {row.top_p:g}; Tinker's "
            "losses compare with logprobs at temperature 1 of the whole distribution. Roll out with `temperature: 1, top_p: 1`"
        )
    mask = row.mask[1:]
    scale = 1.0 / divisor
    return row.token_ids[:-1].tolist(), {
        "target_tokens": row.token_ids[1:],
        "weights": np.where(mask, scale, 0.0),
        "logprobs": np.where(mask, row.logprobs[1:], 0.0),
        "advantages": np.where(mask, row.advantage * scale, 0.0),
    }


def record(row: Row, *, reply: str = "") -> dict[str, Any]:
    """One line of the file."""
    tokens, inputs = arrays(row)
    return {
        "model_input": tokens, "loss_fn_inputs": {name: values.tolist() for name, values in inputs.items()},
        "episode_id": row.episode_id, "group": row.group, "env": row.env, "seat": row.seat, "reward": row.reward,
        "success": row.success, "reply": reply,
    }  # fmt: skip


def read(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of an export. Raises: UserError where it is none."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"no {path}: `envfarm export STORE --to tinker --output {folder}` writes it")
    with path.open("rb") as file:
        yield from map(json.loads, file)


def datums(folder: str | Path, loss: str = "importance_sampling", *, divisor: float = 1.0) -> list[Any]:
    """An export as `tinker.Datum`s for that loss. Raises: UserError, MissingDependencyError."""
    keys, scale = _keys(loss), 1.0 / divisor
    made = []
    for line in read(folder):
        inputs: dict[str, Any] = {k: np.array(line["loss_fn_inputs"][k]) for k in keys}
        for name in inputs.keys() & {"weights", "advantages"}:
            inputs[name] = inputs[name] * scale
        made.append(_datum(line["model_input"], inputs))
    return made


def datums_of(rows: Iterable[Row], loss: str = "importance_sampling", *, divisor: float = 1.0) -> list[Any]:
    """Rows, of a store or just played, as `tinker.Datum`s for that loss. Raises: UserError, MissingDependencyError."""
    keys = _keys(loss)
    return [_datum(tokens, {k: inputs[k] for k in keys}) for tokens, inputs in (arrays(row, divisor=divisor) for row in rows)]


def _keys(loss: str) -> tuple[str, ...]:
    if loss not in LOSSES:
        raise UserError(f"no loss {loss!r}{did_you_mean(loss, LOSSES)}; rows can feed: {', '.join(LOSSES)}")
    return LOSSES[loss]


def _datum(tokens: list[int], inputs: Mapping[str, np.ndarray]) -> Any:
    tinker = package("tinker", extra="tinker")
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens),
        loss_fn_inputs={
            name: tinker.TensorData.from_numpy(values.astype(np.int64 if name == "target_tokens" else np.float32))
            for name, values in inputs.items()
        },
    )


def _last_reply(played: Played, row: Row) -> str:
    """Text of what the row says last: tells whether a tokenizer is the one that the ids are of."""
    episode = played.episode(row)
    path = episode.branches[row.branch].nodes
    return next((episode.nodes[n].message.content for n in reversed(path) if any(episode.nodes[n].mask)), "")
