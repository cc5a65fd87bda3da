"""A store that was killed, that ran out of disk, or whose files were changed: what is finished is there, and damage is named."""

from __future__ import annotations

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
from rollout.store import Store
from rollout.store.check import check_store
from rollout.store.journal import frame, read_frames
from rollout.store.repair import repair_store
from rollout.types import Episode
from tests.rollout.stored import EPISODES, same, sealed_at

ROOT = Path(__file__).parents[2]


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
    tmp_path: Path, table: str, column: str, change: object, says: str, hide: bool
) -> None:
    sealed = sealed_at(tmp_path / "store")
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
