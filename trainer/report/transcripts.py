"""Sample transcripts: for each environment and policy one success and one failure, token by token.

Which ones is a function of the run alone: evaluation episodes of the held-out split where there are any, on the first
instance that the last policy solved and the first that it failed, so that policies can be compared on the same ones;
of online training, two members of one late group that disagree. Everything is text; the page never reads it as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout.store import Store
from rollout.tokenizers import HFTokenizer
from rollout.types import Branch, Episode, Node
from trainer.report.data import Played, RunData
from trainer.report.episodes import phase_name

MOST_TOKENS = 1600
"""Of one branch; what is longer is cut, and said to be."""
MOST_CHARACTERS = 4000
"""Of one message without tokens."""


class Pieces:
    """The text of each token. Without a tokenizer, numbers."""

    def __init__(self, run_dir: Path):
        folders = [run_dir / "tokenizer", *sorted(run_dir.glob("policies/*"))]
        folder = next((f for f in folders if (f / "tokenizer.json").exists()), None)
        self._tokenizer = HFTokenizer(folder) if folder is not None else None
        document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) if folder is not None else {}
        self._special = {t["id"]: t["content"] for t in document.get("added_tokens") or [] if t.get("special")}

    def of(self, ids: Sequence[int]) -> list[str]:
        """As many texts as ids. Bytes that only together are a character stand with the last of them."""
        if self._tokenizer is None:
            return [f"#{i}" for i in ids]
        out: list[str] = []
        start, shown = 0, ""  # the window that is decoded, and what of it was given out already
        for place, token in enumerate(ids):
            if token in self._special:
                out.append(self._special[token])
                start, shown = place + 1, ""
                continue
            text = self._tokenizer.decode(ids[start : place + 1])
            if text.endswith("\ufffd") and place + 1 < len(ids) and place - start < 8:
                out.append("")
                continue
            out.append(text[len(shown) :] if text.startswith(shown) else text)
            start, shown = place, self._tokenizer.decode([token])
        return out


def transcripts(data: RunData) -> list[dict[str, Any]]:
    """Ready for JSON, in the order of the run."""
    if data.store is None:
        return []
    pieces = Pieces(data.run_dir)
    return [_shown(data.store, played, pieces) for played in choose(data)]


def choose(data: RunData) -> list[Played]:
    """Which seats of which episodes are shown."""
    chosen: list[Played] = []
    for env in data.envs:
        mine = [p for p in data.played if p.env == env and p.ok]
        chosen += _one_of_each([p for p in mine if p.phase[0] == "logs"])
        keys = _instances(mine, data)
        for stage in data.stages:
            chosen += _from_training([p for p in mine if p.phase == ("training", stage)])
            chosen += _one_of_each([p for p in mine if p.phase == ("eval", stage)], keys)
    return chosen


def _instances(played: Sequence[Played], data: RunData) -> list[tuple[str, str]]:
    """(split, place) of the instances to prefer: what the last policy solved first, then what it failed, held-out first."""
    last = data.evaluated[-1] if data.evaluated else ""
    final = [p for p in played if p.phase == ("eval", last)]
    final.sort(key=lambda p: p.split != "heldout")
    return [_place(p) for success in (True, False) for p in final if p.success is success][:40]


def _place(p: Played) -> tuple[str, str]:
    """Names an evaluated instance whoever plays it: evaluations play the same ones in the same order."""
    return p.split, p.group.rsplit("/", 1)[-1]


def _one_of_each(played: Sequence[Played], keys: Sequence[tuple[str, str]] = ()) -> list[Played]:
    rank = {key: i for i, key in reversed(list(enumerate(keys)))}
    ordered = sorted(played, key=lambda p: (rank.get(_place(p), len(rank)), p.split != "heldout"))
    return [
        next(p for p in ordered if p.success is success)
        for success in (True, False)
        if any(p.success is success for p in ordered)
    ]


def _from_training(played: Sequence[Played]) -> list[Played]:
    """Two members that disagree, of the last group that has such."""
    for last in reversed(played):
        group = [p for p in played if (p.step, p.group, p.seat) == (last.step, last.group, last.seat)]
        if len({p.success for p in group}) == 2:
            return _one_of_each(group)
    return _one_of_each(played[-64:])


def _shown(store: Store, played: Played, pieces: Pieces) -> dict[str, Any]:
    episode = store.get(played.id)
    return {
        "id": episode.id, "env": episode.env, "phase": phase_name(*played.phase), "split": episode.split, "step": episode.step,
        "success": played.success, "reward": round(played.reward, 4), "stop": str(episode.stop), "seat": played.seat,
        "policy": str(episode.seats[played.seat]), "turns": played.turns, "instance": _instance(episode),
        "hash": episode.instance_hash, "events": [_line(e) for e in episode.perturbations[:60]],
        "rewards": [[r.seat, r.turn, r.component, r.value] for r in episode.rewards][:60],
        "branches": [b for branch in episode.branches if (b := _branch(episode, branch, played.seat, pieces))],
        "messages": [] if episode.nodes else _messages(episode), "final": _cut(episode.final_observation),
    }  # fmt: skip


def _line(event: Any) -> str:
    return json.dumps(event, sort_keys=True, default=str, ensure_ascii=False)[:300]


def _instance(episode: Episode) -> dict[str, Any]:
    kept = ("split", "seed", "row_key", "setting", "params", "perturbation")
    return {k: episode.instance.get(k) for k in kept if episode.instance.get(k) not in (None, {})}


def _branch(episode: Episode, branch: Branch, seat: str, pieces: Pieces) -> dict[str, Any] | None:
    if branch.seat != seat:
        return None
    nodes, room = [], MOST_TOKENS
    for index in branch.nodes:
        node = episode.nodes[index]
        nodes.append(_node(node, pieces, room))
        room -= len(node.token_ids)
        if room <= 0:
            break
    left_out = sum(len(episode.nodes[i].token_ids) for i in branch.nodes) - sum(len(n["ids"]) for n in nodes)
    return {"nodes": nodes, "forked_at": branch.forked_at, "reason": branch.fork_reason, "left_out": left_out}


def _node(node: Node, pieces: Pieces, room: int) -> dict[str, Any]:
    """`logprobs` of sampled tokens in their order, rounded to four digits; `versions`: [first token, version] spans."""
    shown = slice(0, room)
    versions = node.versions or ([(0, node.version)] if node.version is not None else [])
    sampling = node.sampling
    return {
        "role": node.message.role, "turn": node.turn, "ids": node.token_ids[shown], "text": pieces.of(node.token_ids)[shown],
        "mask": "".join("1" if m else "0" for m in node.mask[shown]),
        "logprobs": [round(p, 4) for p, m in zip(node.logprobs[shown], node.mask[shown], strict=True) if m],
        "versions": [[start, str(version)] for start, version in versions],
        "sampling": f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}" if sampling is not None else "",
    }  # fmt: skip


def _messages(episode: Episode) -> list[dict[str, Any]]:
    """Of episodes without tokens (logs): what was shown, what was said."""
    out: list[dict[str, Any]] = []
    for step in episode.steps[:60]:
        out.append({"role": "user", "seat": step.seat, "text": _cut(step.observation)})
        said = step.action or json.dumps(
            [{"name": c.name, "arguments": c.arguments} for c in step.tool_calls], default=str, ensure_ascii=False
        )
        out.append({"role": "assistant", "seat": step.seat, "text": _cut(said), "malformed": step.malformed})
    return out


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}… ({len(text) - MOST_CHARACTERS} more characters)"
