"""verifiers 0.4: `traces.jsonl`, one trace per episode and seat, as its runners write them and `WireTrace` reads them.

A trace is the seat's tree of messages as it was recorded: each node once, with the tokens that it adds, which of them
were sampled, and for those alone logprobs and advantages. Rewards are by component, weight 1 for the environment's
own; an episode that broke has errors and no rewards. Logs are traces without token ids.

Floats are written in full; verifiers' own files round logprobs to four decimals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rollout.export.base import Played, Totals, lacks, totals_of_arrays
from rollout.export.files import Lines
from rollout.export.messages import as_openai, messages_of
from rollout.rows import Row
from rollout.types import Episode, StopReason

FILE = "traces.jsonl"
TRACE_VERSION = 1


class Verifiers:
    """Keeps every episode. A node of several branches is written, and to be trained, once."""

    name = "verifiers"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        """Returns the number of traces. Raises: UserError where the store is empty."""
        with Lines(folder / FILE) as traces:
            for group in groups:
                for trace in traces_of(group):
                    traces.add(trace)
        if not traces.count:
            raise lacks(self.name, "episodes", "roll some out")
        return traces.count

    def select(self, group: Played) -> list[Row]:
        return group.rows

    def totals(self, folder: Path) -> Totals:
        result = Totals()
        for trace in read_traces(folder):
            for node in trace["nodes"]:
                if node["advantages"] is not None:
                    result += totals_of_arrays([True] * sum(node["mask"]), node["advantages"])
        return result


def read_traces(folder: Path) -> Iterator[dict[str, Any]]:
    """The traces of an export."""
    with (folder / FILE).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def traces_of(group: Played) -> Iterator[dict[str, Any]]:
    """Of every episode of a group, a trace per seat. Only seats with rows are marked trainable."""
    advantage = {(row.episode_id, row.seat): row.advantage for row in group.rows}
    for episode in group.group.episodes:
        for seat in sorted(episode.seats):
            key = (episode.id, seat)
            nodes = _nodes(episode, seat, advantage.get(key)) or _said(episode, seat)
            yield {
                "version": TRACE_VERSION, "id": f"{episode.id}/{seat}", "verifiers": {"version": "0.4.0", "commit": None},
                "task": _task(episode), "agent": _agent(episode, seat, key in advantage), "nodes": nodes,
                **_outcome(episode, seat),
            }  # fmt: skip


def _task(episode: Episode) -> dict[str, Any]:
    data = {
        "id": episode.instance_hash, "name": f"{episode.env} {episode.split}", "env": episode.env, "split": episode.split,
        "instance": episode.instance, "instance_hash": episode.instance_hash,
    }  # fmt: skip
    return {"type": "EnvfarmTask", "data": data, "key": episode.instance_hash, "hash": None}


def _agent(episode: Episode, seat: str, trainable: bool) -> dict[str, Any]:
    config = {"harness": {"id": "envfarm"}, "runtime": {"type": "subprocess"}, "model": str(episode.seats[seat])}
    return {"config": config, "runtime": None, "name": seat, "trainable": trainable}


def _nodes(episode: Episode, seat: str, advantage: float | None) -> list[dict[str, Any]]:
    """The seat's nodes in order; `parent` counts among them. `advantages` is null where nothing was assigned."""
    own = [i for i, node in enumerate(episode.nodes) if node.seat == seat]
    place = {node: number for number, node in enumerate(own)}
    shown = _messages([episode.nodes[i] for i in own])
    found: list[dict[str, Any]] = []
    for i, message in zip(own, shown, strict=True):
        node = episode.nodes[i]
        sampled = sum(node.mask)
        assigned = None if advantage is None or not sampled else [advantage] * sampled
        found.append({
            "parent": place.get(node.parent), "message": message, "sampled": bool(sampled), "token_ids": list(node.token_ids),
            "mask": list(node.mask), "logprobs": [p for p, m in zip(node.logprobs, node.mask, strict=True) if m],
            "advantages": assigned, "timestamp": 0.0,
        })  # fmt: skip
    if found and (tools := _tools(episode)):
        for node_ in found:
            if node_["parent"] is None:
                node_["tools"] = tools
    return found


def _said(episode: Episode, seat: str) -> list[dict[str, Any]]:
    """Of logs: messages alone."""
    return [
        {
            "parent": number - 1 if number else None, "message": _theirs(message), "sampled": message["role"] == "assistant",
            "token_ids": [], "mask": [], "logprobs": [], "advantages": None, "timestamp": 0.0,
        }
        for number, message in enumerate(messages_of(episode, seat))
    ]  # fmt: skip


def _messages(nodes: list[Any]) -> list[dict[str, Any]]:
    return [_theirs(message) for message in as_openai(node.message for node in nodes)]


def _theirs(message: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's shape with calls laid flat."""
    calls = [
        {"id": c["id"], "type": "function", "name": c["function"]["name"], "arguments": c["function"]["arguments"]}
        for c in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


def _tools(episode: Episode) -> list[dict[str, Any]]:
    return [
        {"type": "function", "name": t["name"], "description": t["description"], "parameters": t["inputSchema"]}
        for t in episode.tools
    ]


def _outcome(episode: Episode, seat: str) -> dict[str, Any]:
    components: dict[str, float] = {}
    for entry in episode.rewards:
        if entry.seat == seat:
            components[entry.component] = components.get(entry.component, 0.0) + entry.value
    rewards = {name: {"score": value, "weight": float(name == "env")} for name, value in components.items()}
    errors = [] if episode.ok else [{"type": episode.stop.value, "message": episode.error}]
    return {
        "rewards": rewards if episode.ok else {},
        "metrics": {"success": float(episode.success.get(seat, False))} if episode.ok else {},
        "info": {"group": episode.group, "member": episode.member, "stage": episode.stage, "step": episode.step},
        "is_completed": True, "ok": episode.ok, "stop_condition": episode.stop.value, "errors": errors,
        "is_timeout": episode.stop is StopReason.TIMEOUT,
    }  # fmt: skip
