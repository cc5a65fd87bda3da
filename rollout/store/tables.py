"""Episodes as Parquet tables and back: the schema, in one place.

| table | one row per | key |
| --- | --- | --- |
| episodes | episode | id |
| steps | action, as the environment saw it | episode_id, step |
| nodes | message as tokens: each token stored once | episode_id, node |
| branches | path of nodes: one training row | episode_id, branch |
| rewards | reward of a seat, step and component; appended ones included | episode_id, seat, turn, component, grader |
| blobs | text that many rows share (observations, instances, tools), by its hash | hash |

Columns named `*_blob` hold a blob's hash. `checksum` covers the record of its row as msgpack; an episode's covers the
whole episode as it was appended. JSON columns hold canonical JSON. Logprobs are doubles, so that they come back to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from rollout.types import Branch, Episode, Node, RewardEntry, Step

_text, _int, _long, _real, _flag = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
_version = pa.struct([("policy", _text), ("incarnation", _int), ("number", _int), ("checksum", _text)])
_sampling = pa.struct(
    [("temperature", _real), ("top_p", _real), ("max_tokens", _int), ("stop_ids", pa.list_(_int)), ("seed", _long)]
)
_timings = pa.struct([("queue_s", _real), ("engine_s", _real), ("env_s", _real), ("total_s", _real)])
_spans = pa.list_(pa.list_(_int))

SCHEMAS: dict[str, pa.Schema] = {
    "episodes": pa.schema([
        ("id", _text), ("run", _text), ("stage", _text), ("step", _int), ("group", _text), ("index", _int),
        ("member", _int), ("attempt", _int), ("env", _text), ("instance_blob", _text), ("instance_hash", _text),
        ("split", _text), ("seats", pa.map_(_text, _version)), ("final_observation_blob", _text),
        ("opening_output", _spans), ("tools_blob", _text), ("reward", pa.map_(_text, _real)),
        ("success", pa.map_(_text, _flag)), ("terminated", _flag), ("truncated", _flag), ("stop", _text),
        ("error", _text), ("drift", pa.map_(_text, _int)), ("malformed", _int), ("perturbations_blob", _text),
        ("virtual_time_s", _real), ("timings", _timings), ("checksum", _text),
    ]),
    "steps": pa.schema([
        ("episode_id", _text), ("step", _int), ("seat", _text), ("observation_blob", _text), ("action", _text),
        ("tool_calls", _text), ("reward", pa.map_(_text, _real)), ("malformed", _flag), ("command_output", _spans),
        ("checksum", _text),
    ]),
    "nodes": pa.schema([
        ("episode_id", _text), ("node", _int), ("parent", _int), ("seat", _text), ("turn", _int), ("role", _text),
        ("content_blob", _text), ("tool_calls", _text), ("thinking", _text), ("token_ids", pa.list_(_int)),
        ("mask", pa.list_(_flag)), ("logprobs", pa.list_(_real)), ("version", _version), ("versions", _text),
        ("sampling", _sampling), ("checksum", _text),
    ]),
    "branches": pa.schema([
        ("episode_id", _text), ("branch", _int), ("seat", _text), ("nodes", pa.list_(_int)), ("forked_at", _int),
        ("fork_reason", _text),
    ]),
    "rewards": pa.schema([
        ("episode_id", _text), ("seat", _text), ("turn", _int), ("component", _text), ("value", _real),
        ("grader", _text), ("appended", _flag), ("checksum", _text),
    ]),
    "blobs": pa.schema([("hash", _text), ("data", _text)]),
}  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode


def checksum(record: Any) -> str:
    """16 hex digits over the record's msgpack."""
    return hashlib.blake2b(_encode(record), digest_size=8).hexdigest()


def blob_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class TableWriter:
    """Collects rows of all tables, column by column. `tables()` gives them as Arrow."""

    def __init__(self) -> None:
        self._columns: dict[str, dict[str, list[Any]]] = {
            name: {column: [] for column in schema.names} for name, schema in SCHEMAS.items()
        }
        self._blobs: dict[str, str] = {}

    def add(self, episode: Episode) -> None:
        plain = {name: getattr(episode, name) for name in _PLAIN}
        self._put("episodes", plain | {
            "instance_blob": self._blob_json(episode.instance),
            "final_observation_blob": self._blob(episode.final_observation),
            "tools_blob": self._blob_json(episode.tools),
            "perturbations_blob": self._blob_json(episode.perturbations),
            "seats": [(role, _plain(version)) for role, version in episode.seats.items()],
            "reward": list(episode.reward.items()), "success": list(episode.success.items()),
            "drift": list(episode.drift.items()), "stop": episode.stop.value,
            "timings": _plain(episode.timings), "checksum": checksum(episode),
        })  # fmt: skip
        for index, step in enumerate(episode.steps):
            self._put("steps", self._step(episode.id, index, step))
        for index, node in enumerate(episode.nodes):
            self._put("nodes", self._node(episode.id, index, node))
        for index, branch in enumerate(episode.branches):
            self._put("branches", _plain(branch) | {"episode_id": episode.id, "branch": index})
        for entry in episode.rewards:
            self.add_reward(episode.id, entry, appended=False)

    def add_reward(self, episode_id: str, entry: RewardEntry, *, appended: bool) -> None:
        row = {"episode_id": episode_id, "appended": appended, "checksum": checksum(entry)}
        self._put("rewards", _plain(entry) | row)

    def tables(self) -> dict[str, pa.Table]:
        self._columns["blobs"] = {"hash": list(self._blobs), "data": list(self._blobs.values())}
        return {
            name: pa.Table.from_arrays([_array(self._columns[name][field.name], field.type) for field in schema], schema=schema)
            for name, schema in SCHEMAS.items()
        }

    def _put(self, table: str, row: Mapping[str, Any]) -> None:
        for name, column in self._columns[table].items():
            column.append(row[name])

    def _step(self, episode_id: str, index: int, step: Step) -> dict[str, Any]:
        return {
            "episode_id": episode_id, "step": index, "seat": step.seat, "observation_blob": self._blob(step.observation),
            "action": step.action, "tool_calls": _json_or_empty(step.tool_calls), "reward": list(step.reward.items()),
            "malformed": step.malformed, "command_output": step.command_output, "checksum": checksum(step),
        }  # fmt: skip

    def _node(self, episode_id: str, index: int, node: Node) -> dict[str, Any]:
        message = node.message
        return {
            "episode_id": episode_id, "node": index, "parent": node.parent, "seat": node.seat, "turn": node.turn,
            "role": message.role, "content_blob": self._blob(message.content),
            "tool_calls": _json_or_empty(message.tool_calls), "thinking": message.thinking,
            "token_ids": node.token_ids, "mask": node.mask, "logprobs": node.logprobs,
            "version": None if node.version is None else _plain(node.version),
            "versions": _json_or_empty(node.versions),
            "sampling": None if node.sampling is None else _plain(node.sampling), "checksum": checksum(node),
        }  # fmt: skip

    def _blob(self, text: str) -> str:
        key = blob_hash(text)
        self._blobs.setdefault(key, text)
        return key

    def _blob_json(self, value: Any) -> str:
        return self._blob(_json(value).decode())


_FLAT: dict[pa.DataType, type] = {_int: np.int32, _real: np.float64, _flag: np.bool_}


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """`values` as Arrow; lists of numbers, which are most of a store, by way of one flat NumPy array."""
    flat = _FLAT.get(kind.value_type) if pa.types.is_list(kind) else None
    if flat is None:
        return pa.array(values, type=kind)
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    items: np.ndarray = np.fromiter(chain.from_iterable(values), flat, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(items, type=kind.value_type), type=kind)


_WRITTEN_OTHERWISE = ("seats", "reward", "success", "drift", "stop", "timings")
_PLAIN = [n for n in SCHEMAS["episodes"].names if n in Episode.__struct_fields__ and n not in _WRITTEN_OTHERWISE]


def episodes_of(
    tables: Mapping[str, pa.Table], wanted: set[str] | None = None
) -> Iterable[tuple[Episode, str, list[RewardEntry]]]:
    """Episodes of one segment with their stored checksum and the rewards appended later, in stored order.

    Raises: KeyError where a blob is missing, msgspec.ValidationError where a value is not what it should be.
    """
    blobs = dict(zip(tables["blobs"]["hash"].to_pylist(), tables["blobs"]["data"].to_pylist(), strict=True))
    parts = {name: _by_episode(tables[name]) for name in ("steps", "nodes", "branches", "rewards")}
    for row in tables["episodes"].to_pylist(maps_as_pydicts="strict"):
        found = {name: rows.get(row["id"], []) for name, rows in parts.items()}
        rewards = [(r.pop("appended"), msgspec.convert(_only(r, RewardEntry), RewardEntry)) for r in found["rewards"]]
        plain = {name: value for name, value in row.items() if not name.endswith("_blob") and name != "checksum"}
        plain |= {
            "instance": msgspec.json.decode(blobs[row["instance_blob"]]),
            "final_observation": blobs[row["final_observation_blob"]],
            "tools": msgspec.json.decode(blobs[row["tools_blob"]]),
            "perturbations": msgspec.json.decode(blobs[row["perturbations_blob"]]),
            "steps": [_read_step(r, blobs) for r in found["steps"]],
            "nodes": [_read_node(r, blobs) for r in found["nodes"]],
            "branches": [_only(r, Branch) for r in found["branches"]],
            "rewards": [entry for appended, entry in rewards if not appended],
        }
        yield msgspec.convert(plain, Episode), row["checksum"], [entry for appended, entry in rewards if appended]


def _by_episode(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist(maps_as_pydicts="strict"):
        grouped.setdefault(row["episode_id"], []).append(row)
    return grouped


def _read_step(row: dict[str, Any], blobs: Mapping[str, str]) -> dict[str, Any]:
    read = {**row, "observation": blobs[row["observation_blob"]], "tool_calls": _parsed(row["tool_calls"])}
    return _only(read, Step)


def _read_node(row: dict[str, Any], blobs: Mapping[str, str]) -> dict[str, Any]:
    message = {
        "role": row["role"], "content": blobs[row["content_blob"]], "tool_calls": _parsed(row["tool_calls"]),
        "thinking": row["thinking"],
    }  # fmt: skip
    return _only({**row, "message": message, "versions": _parsed(row["versions"])}, Node)


def _only(row: Mapping[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {name: row[name] for name in kind.__struct_fields__ if name in row}


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    return msgspec.structs.asdict(value)


def _json_or_empty(value: Sequence[Any]) -> str:
    return _json(value).decode() if value else ""


def _parsed(text: str) -> Any:
    return msgspec.json.decode(text) if text else []
