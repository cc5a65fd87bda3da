"""Pairs and replies: what is compared, what is left out, and that text and tokens tell of the same replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout.export import export, exporter
from rollout.export.base import Played
from rollout.export.replies import pairs, replies_of, row_replies, spoken
from rollout.export.trl import IGNORED, read
from rollout.store import Store
from rollout.types import Episode
from tests.rollout.export.stores import TOKENIZER, chatty, groups_of, oracle, play, with_a_failure


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    return with_a_failure(play(folder / "played", chatty(), groups=8, size=6), folder / "store")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("trl") / "logs", oracle(0.5), groups=6, size=6, stage="logs")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["store", "logs"])
def test_a_pair_is_two_replies_to_one_history_of_which_one_led_to_more(kind: str, request: pytest.FixtureRequest) -> None:
    found = 0
    for group in groups_of(request.getfixturevalue(kind)):
        ok = {e.id: e for e in group.group.episodes if e.ok}
        used: list[str] = []
        for better, worse in pairs(list(replies_of(group))):
            found += 1
            used += [better.episode_id, worse.episode_id]
            a, b = ok[better.episode_id], ok[worse.episode_id]
            assert a.reward["agent"] == better.reward > worse.reward == b.reward["agent"]
            (before, said), (before_b, said_b) = spoken(group, better), spoken(group, worse)
            assert before == before_b and said != said_b and said["role"] == said_b["role"] == "assistant"
            if better.row is not None:
                assert better.prompt_ids == worse.prompt_ids and better.token_ids != worse.token_ids
        assert len(used) == len(set(used)), "an episode is in one pair at most"
    assert found > 3


def test_episodes_that_part_in_what_they_saw_make_no_pair(logs: Path) -> None:
    """An environment that is not deterministic: same action, other observation, other reward."""
    import msgspec

    group = next(g for g in groups_of(logs) if pairs(list(replies_of(g))))
    source: Episode = max(group.group.episodes, key=lambda e: len(e.steps))
    changed = [
        msgspec.structs.replace(step, observation=step.observation + " (seen otherwise)") if number else step
        for number, step in enumerate(source.steps)
    ]
    other = msgspec.structs.replace(source, id="other", reward={"agent": source.reward["agent"] - 1.0}, steps=changed)
    twins = Played(msgspec.structs.replace(group.group, episodes=[source, other]), [])
    assert len(source.steps) > 1 and pairs(list(replies_of(twins))) == []


def test_each_reply_is_what_the_tokens_spell(store: Path) -> None:
    seen = 0
    for group in groups_of(store):
        for row in group.rows:
            replies = row_replies(row)
            assert sum(len(r.token_ids) for r in replies) == row.trained
            for reply in replies:
                _, said = spoken(group, reply)
                assert said["content"] in TOKENIZER.decode(reply.token_ids) and said["content"]
                only = reply.only()
                assert only.trained == len(reply.token_ids) and np.array_equal(only.token_ids, row.token_ids)
                seen += 1
    assert seen > 50


def test_sft_labels_are_the_mask(store: Path, tmp_path: Path) -> None:
    export(exporter("trl-sft"), groups_of(store), tmp_path / "out")
    rows = [row for g in groups_of(store) for row in g.rows]
    for record, row in zip(read(tmp_path / "out"), rows, strict=True):
        labels = np.array(record["labels"])
        assert record["input_ids"] == row.token_ids.tolist()
        assert np.array_equal(labels != IGNORED, row.mask) and np.array_equal(labels[row.mask], row.token_ids[row.mask])
        assert (record["reward"], record["success"], record["advantage"]) == (row.reward, row.success, row.advantage)


def test_text_is_whole_conversations_and_single_replies(logs: Path, tmp_path: Path) -> None:
    export(exporter("trl-sft"), groups_of(logs), tmp_path / "sft")
    export(exporter("trl-kto"), groups_of(logs), tmp_path / "kto")
    episodes = [e for g in groups_of(logs) for e in g.group.episodes]
    talks = lines(tmp_path / "sft" / "messages.jsonl")
    assert [len(t["messages"]) for t in talks] == [2 * len(e.steps) for e in episodes]
    assert [json.loads(t["tools"])[0]["function"]["name"] for t in talks] == ["move"] * len(talks)
    replies = lines(tmp_path / "kto" / "replies.jsonl")
    assert len(replies) == sum(len(e.steps) for e in episodes)
    by_id = {e.id: e for e in episodes}
    assert {r["label"] for r in replies} == {True, False}
    for reply in replies:
        episode, number = by_id[reply["episode_id"]], len(reply["prompt"]) // 2
        assert reply["label"] == episode.success["agent"]
        assert reply["prompt"][-1] == {"role": "user", "content": episode.steps[number].observation}
        assert reply["completion"] == [{"role": "assistant", "content": episode.steps[number].action}]


def test_what_is_not_ok_is_nowhere(store: Path, tmp_path: Path) -> None:
    dead = {e.id for e in Store.open(store).episodes() if not e.ok}
    assert dead
    for name in ("trl-sft", "trl-dpo", "trl-kto"):
        export(exporter(name), groups_of(store), tmp_path / name)
        said = [r for file in (tmp_path / name).glob("*.jsonl") for r in lines(file)] + list(read(tmp_path / name))
        assert said and not dead & {r["episode_id"] for r in said}
