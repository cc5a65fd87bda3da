"""Nothing finished is lost, nothing comes twice, and damage is found and named."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envfarm.errors import StoreError
from rollout.plan import GroupRequest, RunPlan
from rollout.policies import EnginePolicy
from rollout.renderers.compact import CompactRenderer
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.store.check import check_store
from rollout.store.journal import frame, read_frames
from rollout.store.repair import repair_store
from rollout.types import Episode, PolicyVersion, RewardEntry
from tests.rollout.scenes import COUNT, SPECS, CharTokenizer, HashEngine, instance, local_pool

ROOT = Path(__file__).parents[2]
V1 = PolicyVersion("learner", 0, 1, "w1")


def played(groups: int = 4, size: int = 2, store: Store | None = None, step: int = 0) -> list[Episode]:
    tokenizer = CharTokenizer()
    policy = EnginePolicy(V1, HashEngine(tokenizer, ["add 1", "add 2", "é?"]), CompactRenderer(tokenizer))

    async def go() -> list[Episode]:
        async with Rollouts(RunPlan("run", 0, SPECS), local_pool(), {"learner": policy}, store) as rollouts:
            asked = [
                GroupRequest(
                    env=COUNT.id, instance=instance(COUNT, i), size=size, stage="online", step=step, index=i,
                    seats={"agent": "learner"},
                )
                for i in range(groups)
            ]  # fmt: skip
            return [e for g in await rollouts.run(asked) for e in g.episodes]

    return asyncio.run(go())


EPISODES = played()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "store") as store:
        for episode in EPISODES:
            store.append(episode)
    return tmp_path / "store"


def same(left: list[Episode], right: list[Episode]) -> bool:
    return [msgspec.msgpack.encode(e) for e in left] == [msgspec.msgpack.encode(e) for e in right]


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


# Death and damage.


@given(st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_at_any_byte_a_journal_keeps_every_whole_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("s") / "store"
    store = Store.create(folder)
    ends = []
    for episode in EPISODES[:4]:
        store.append(episode)
        ends.append((folder / "journal" / "000001.log").stat().st_size)
    whole = (folder / "journal" / "000001.log").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    copy = folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / "journal" / "000001.log").write_bytes(whole[:cut])
    kept = sum(end <= cut for end in ends)
    assert same(list(Store.open(copy).episodes()), EPISODES[:kept])
    with Store.open(copy, write=True) as again:
        for episode in EPISODES[kept:]:
            again.append(episode)
    assert same(list(Store.open(copy).episodes()), EPISODES)
    assert check_store(copy) == ([], len(EPISODES))
    store.close()


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.data())
def test_one_flipped_byte_loses_one_record_at_most_and_is_noticed(payloads: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(frame(p) for p in payloads)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    found = list(read_frames(flipped))
    assert any(f.damage and not f.torn for f in found)
    good = [f.payload for f in found if not f.damage]
    assert len(good) >= len(payloads) - 1 and all(p in payloads for p in good)


@pytest.mark.parametrize("stage", ["segment written", "manifest written", "half a segment"])
def test_killed_while_sealing_neither_loses_nor_doubles(tmp_path: Path, stage: str) -> None:
    store = Store.create(tmp_path / "s")
    for episode in EPISODES:
        store.append(episode)
    journal = store.path / "journal" / "000001.log"
    spent, before = journal.read_bytes(), (store.path / "manifest.json").read_bytes()
    store.close()
    journal.write_bytes(spent)  # as if the process had died before it was removed
    if stage != "manifest written":
        (store.path / "manifest.json").write_bytes(before)
    if stage == "half a segment":
        shutil.move(store.path / "segments" / "000001", store.path / "segments" / "000001.tmp")
    assert same(list(Store.open(store.path).episodes()), EPISODES)
    with Store.open(store.path, write=True) as again:
        assert same(list(again.episodes()), EPISODES)
    assert check_store(store.path) == ([], len(EPISODES))
    assert sorted(p.name for p in (store.path / "segments").iterdir()) == ["000001"]


def write_lines(episodes: list[Episode], path: Path) -> None:
    """For another process: what `rollout.export.jsonl.read` reads."""
    path.write_bytes(b"".join(msgspec.json.encode(e) + b"\n" for e in episodes))


WRITER = """
import sys
from pathlib import Path
from rollout.export.jsonl import read
from rollout.store import Store, store as module
import msgspec
module.SEAL_EVERY = 5
store, EPISODES = Store.create(Path(sys.argv[1])), list(read(Path(sys.argv[2])))
number = 0
while True:
    for episode in EPISODES:
        store.append(msgspec.structs.replace(episode, id=f"{number}"))
        print(number, flush=True)
        number += 1
"""


def test_kill_9_of_a_writer_loses_nothing_that_it_had_finished(tmp_path: Path) -> None:
    write_lines(EPISODES, tmp_path / "episodes")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "s"), str(tmp_path / "episodes")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    finished = [next(process.stdout) for _ in range(23)][-1]
    process.send_signal(signal.SIGKILL)
    finished = ([finished, *process.stdout])[-1]
    process.wait()
    process.stdout.close()
    with Store.open(tmp_path / "s", write=True) as store:
        ids = sorted(int(e.id) for e in store.episodes())
    assert ids == list(range(len(ids))) and len(ids) in (int(finished) + 1, int(finished) + 2)
    findings, read = check_store(tmp_path / "s")
    assert (findings, read) == ([], len(ids))


FULL = """
import resource, sys
from pathlib import Path
from envfarm.errors import StoreError
from rollout.export.jsonl import read
from rollout.store import Store
store, EPISODES = Store.create(Path(sys.argv[1])), list(read(Path(sys.argv[2])))
store.append(EPISODES[0])
store.append(EPISODES[1])
size = (Path(sys.argv[1]) / "journal" / "000001.log").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
for attempt in (lambda: store.append(EPISODES[2]), store.seal if sys.argv[3] == "seal" else lambda: store.append(EPISODES[2])):
    if sys.argv[3] == "seal":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        attempt()
    except StoreError as error:
        print(error)
    else:
        raise SystemExit("it was written")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert [e.id for e in store.episodes()] == [e.id for e in EPISODES[:2]]
store.append(EPISODES[2])
store.close()
"""


@pytest.mark.parametrize("when", ["append", "seal"])
def test_a_full_disk_is_a_clear_error_and_nothing_stored_is_lost(tmp_path: Path, when: str) -> None:
    write_lines(EPISODES, tmp_path / "episodes")
    command = [sys.executable, "-c", FULL, str(tmp_path / "s"), str(tmp_path / "episodes"), when]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot write to") == 2 and "File too large" in done.stdout
    assert same(list(Store.open(tmp_path / "s").episodes()), EPISODES[:3])
    assert check_store(tmp_path / "s") == ([], 3)


def test_a_flipped_byte_in_the_journal_is_named_with_its_episode(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    for episode in EPISODES:
        store.append(episode)
    path = store.path / "journal" / "000001.log"
    data = path.read_bytes()
    at = data.index(EPISODES[2].steps[0].observation.encode(), data.index(EPISODES[2].id.encode()))
    path.write_bytes(data[:at] + b"X" + data[at + 1 :])
    with pytest.raises(StoreError, match=rf"000001.log, byte \d+.*{EPISODES[2].id}"):
        Store.open(tmp_path / "s")
    salvaged = Store.open(tmp_path / "s", salvage=True)
    assert same(list(salvaged.episodes()), [e for e in EPISODES if e is not EPISODES[2]])
    findings, read = check_store(tmp_path / "s")
    assert len(findings) == 1 and EPISODES[2].id in str(findings[0]) and read == len(EPISODES) - 1


def tamper(path: Path, table: str, column: str, row: int, change: object, *, hide: bool) -> None:
    """Rewrite one value of a Parquet file; with `hide`, put the new file's checksum into the manifest as well."""
    from rollout.store.manifest import FileEntry, Manifest, file_sha256

    file = path / "segments" / "000001" / f"{table}.parquet"
    read = pq.read_table(file)
    values = read[column].to_pylist()
    values[row] = change(values[row]) if callable(change) else change
    index = read.schema.get_field_index(column)
    pq.write_table(read.set_column(index, read.schema.field(column), pa.array(values, read.schema.field(column).type)), file)
    if hide:
        manifest = Manifest.read(path)
        manifest.segments[0].files[table] = FileEntry(file_sha256(file), read.num_rows)
        manifest.write(path)


@pytest.mark.parametrize(
    ("table", "column", "change", "says"),
    [
        ("nodes", "token_ids", lambda ids: [ids[0] + 1, *ids[1:]], r"node 3.*token_ids"),
        ("nodes", "logprobs", lambda p: [*p[:-1], -0.125], r"node 3"),
        ("nodes", "mask", lambda m: [not m[0], *m[1:]], r"node 3"),
        ("steps", "observation_blob", lambda _: "0" * 32, r"do not fit together|step 3"),
        ("steps", "action", "north", r"step 3.*north"),
        ("rewards", "value", lambda v: v + 1.0, r"reward 0.*value"),
        ("episodes", "reward", lambda r: [(k, v + 1.0) for k, v in r], r"reward of agent|its row"),
        ("blobs", "data", lambda text: text + ".", r"does not match its hash"),
    ],
)
@pytest.mark.parametrize("hide", [False, True])
def test_one_changed_value_is_found_and_named(
    sealed: Path, table: str, column: str, change: object, says: str, hide: bool
) -> None:
    tamper(sealed, table, column, 3, change, hide=hide)
    findings, _ = check_store(sealed)
    text = "\n".join(map(str, findings))
    assert findings and re.search(says, text), text
    if not hide:
        assert f"{table}.parquet is damaged" in text
        with pytest.raises(StoreError, match=f"{table}.parquet is damaged"):
            list(Store.open(sealed).episodes())


@pytest.mark.parametrize("table", ["episodes", "steps", "nodes", "branches", "rewards", "blobs"])
def test_a_damaged_segment_leaves_the_others_readable(tmp_path: Path, table: str) -> None:
    store = Store.create(tmp_path / "s")
    for number, episode in enumerate(EPISODES):
        store.append(episode)
        if number == 3:
            store.seal()
    store.close()
    file = tmp_path / "s" / "segments" / "000001" / f"{table}.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=rf"000001/{table}.parquet is damaged.*untouched"):
        list(Store.open(tmp_path / "s").episodes())
    rest = Store.open(tmp_path / "s", salvage=True)
    assert same(list(rest.episodes()), EPISODES[4:]) and len(rest.damages) == 1
    file.unlink()
    assert "is missing" in str(check_store(tmp_path / "s")[0][0])


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


def test_repair_sets_damaged_parts_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    for number, episode in enumerate(EPISODES):
        store.append(episode)
        if number in (1, 3):
            store.seal()
    file = store.path / "segments" / "000002" / "nodes.parquet"
    file.write_bytes(file.read_bytes()[:-3])
    journal = store.path / "journal" / "000003.log"
    data = journal.read_bytes()
    journal.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(StoreError, match="being written"):
        repair_store(store.path)
    os.close(store._lock)
    moved = repair_store(store.path)
    assert len(moved) == 2 and "segment 000002" in moved[0] and "byte 0" in moved[1]
    assert sorted(p.name for p in (store.path / "damaged").iterdir()) == ["000002", "000003.log"]
    with Store.open(store.path, write=True) as again:
        assert same(list(again.episodes()), [*EPISODES[:2], *EPISODES[5:]])
        for episode in EPISODES[2:5]:
            again.append(episode)
    assert check_store(store.path) == ([], len(EPISODES))
    assert repair_store(store.path) == []
