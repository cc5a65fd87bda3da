"""Nothing finished is lost, nothing comes twice: what is stored comes back, and what is no store is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envfarm.errors import StoreError
from rollout.store import Store
from rollout.store.check import check_store
from rollout.types import PolicyVersion, RewardEntry
from tests.rollout.stored import EPISODES, played, same, sealed_at


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return sealed_at(tmp_path / "store")


def test_what_was_appended_comes_back_to_the_bit_sealed_or_not(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    for episode in reversed(EPISODES):
        store.append(episode)
    assert same(list(store.episodes()), EPISODES), "in dispatch order, whenever they finished"
    assert same(list(Store.open(tmp_path / "s").episodes()), EPISODES), "a reader sees what is not sealed yet"
    store.close()
    assert same(list(Store.open(tmp_path / "s").episodes()), EPISODES)
    assert check_store(tmp_path / "s") == ([], len(EPISODES))


def test_an_id_is_stored_once(sealed: Path) -> None:
    with Store.open(sealed, write=True) as store, pytest.raises(ValueError, match="stored already"):
        store.append(EPISODES[0])


def test_filters_and_single_episodes(sealed: Path) -> None:
    store = Store.open(sealed)
    assert [e.id for e in store.episodes(index=2, stage="online")] == [e.id for e in EPISODES if e.index == 2]
    assert list(store.episodes(stage="logs")) == []
    assert store.get(EPISODES[3].id).id == EPISODES[3].id
    with pytest.raises(StoreError, match="holds no episode nope"):
        store.get("nope")


def test_rewards_are_appended_and_the_episode_is_not_rewritten(sealed: Path) -> None:
    late = RewardEntry(seat="agent", turn=0, component="style", value=0.25, grader="judge")
    with Store.open(sealed, write=True) as store:
        store.append_reward(EPISODES[0].id, late)
        assert store.get(EPISODES[0].id).rewards[-1] == late
        with pytest.raises(StoreError, match="no episode"):
            store.append_reward("nope", late)
    again = Store.open(sealed)
    assert again.get(EPISODES[0].id).rewards == [*EPISODES[0].rewards, late]
    assert again.get(EPISODES[0].id).reward == EPISODES[0].reward
    assert check_store(sealed)[0] == []


def test_a_finished_episode_is_not_run_again_after_a_restart(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        first = played(store=store)
    with Store.open(tmp_path / "s", write=True) as store:
        slot = ("online", 0, 1, 1)
        assert store.find(slot, first[3].instance_hash, first[3].seats) is not None
        other = {"agent": PolicyVersion("learner", 1, 1, "other weights")}
        assert store.find(slot, first[3].instance_hash, other) is None
        again = {"agent": PolicyVersion("learner", 4, 1, "w1")}
        assert store.find(slot, first[3].instance_hash, again) is not None, "weights count, not the incarnation"
        assert store.find(slot, "another instance", first[3].seats) is None
        assert same(played(store=store), first)
    assert len(list(Store.open(tmp_path / "s").episodes())) == len(first)


def test_duckdb_reads_sealed_and_unsealed_rows_alike(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    for number, episode in enumerate(EPISODES):
        store.append(episode)
        if number == 3:
            store.seal()
    store.append_reward(EPISODES[0].id, RewardEntry(seat="agent", turn=0, component="style", value=1.0, grader="judge"))
    counted = store.sql("select count(*) as n, sum(reward['agent']) as total from episodes")[0]
    assert counted["n"] == len(EPISODES)
    assert counted["total"] == pytest.approx(sum(e.reward["agent"] for e in EPISODES))
    sampled = "select count(*) as n from (select unnest(mask) as sampled from nodes) where sampled"
    assert store.sql(sampled)[0]["n"] == sum(sum(n.mask) for e in EPISODES for n in e.nodes)
    shown = store.sql(f"select observation from steps where episode_id = '{EPISODES[0].id}' order by step")
    assert [r["observation"] for r in shown] == [s.observation for s in EPISODES[0].steps]
    assert store.sql("select count(*) as n from rewards where appended")[0]["n"] == 1
    with pytest.raises(StoreError, match="the query failed"):
        store.sql("select nonsense")
    store.close()


# What is no store, or not ours to open.


def test_what_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store: no such directory"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"not a store: it holds no manifest.json"):
        Store.open(tmp_path)
    (tmp_path / "x").write_text("")
    with pytest.raises(StoreError, match="not empty"):
        Store.create(tmp_path)


def test_a_manifest_of_another_version_or_damaged_is_refused(sealed: Path) -> None:
    path = sealed / "manifest.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"schema_version": 99}))
    with pytest.raises(StoreError, match=r"schema version 99; this envfarm reads version \d"):
        Store.open(sealed)
    path.write_text(json.dumps(good | {"tokenizer_hash": "x"}))
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        Store.open(sealed)
    path.write_text("{")
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        Store.open(sealed)


def test_one_writer_at_a_time_and_any_number_of_readers(sealed: Path) -> None:
    with Store.open(sealed, write=True):
        with pytest.raises(StoreError, match="written by another process"):
            Store.open(sealed, write=True)
        assert len(list(Store.open(sealed).episodes())) == len(EPISODES)
    Store.open(sealed, write=True).close()


def test_tokens_of_two_tokenizers_do_not_mix(sealed: Path) -> None:
    with Store.open(sealed, write=True) as store:
        store.bind(tokenizer_hash="a", template_hash="t")
        store.bind(tokenizer_hash="a", template_hash="t")
        with pytest.raises(StoreError, match="tokenizer_hash a, not b"):
            store.bind(tokenizer_hash="b", template_hash="t")
    assert Store.open(sealed).manifest.tokenizer_hash == "a"
