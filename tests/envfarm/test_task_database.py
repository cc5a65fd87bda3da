"""SQL on the bytes of a database: what it gives, what it refuses, and that nothing outside of the bytes takes part."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from envfarm.task import database
from envfarm.task.database import OverLimit, Result, StatementError, canonical, create, run

START = create("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT DEFAULT CURRENT_TIMESTAMP); INSERT INTO t (a) VALUES (1), (2);")
COUNT = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r {}) "


def after(statement: str, data: bytes = START) -> bytes:
    changed = run(data, statement).data
    assert changed is not None
    return changed


def test_rows_changes_and_new_bytes() -> None:
    assert run(START, "SELECT a FROM t") == Result(("a",), [(1,), (2,)], False, -1, None)
    result = run(START, "DELETE FROM t WHERE a = 1")
    assert result.changed_rows == 1 and result.data is not None and result.columns == ()
    assert run(result.data, "SELECT a FROM t").rows == [(2,)]
    assert run(START, "INSERT INTO t VALUES (7, 'x') RETURNING a, b").rows == [(7, "x")]
    assert run(after("CREATE TABLE u (c)", b""), "SELECT count(*) FROM u").rows == [(0,)]
    assert run(START, "  -- nothing\n") == Result((), [], False, -1, None)


def test_more_rows_than_asked_for() -> None:
    result = run(START, COUNT.format("LIMIT 60") + "SELECT n FROM r")
    assert len(result.rows) == database.MAX_ROWS and result.more
    wide = run(START, COUNT.format("LIMIT 40") + "SELECT zeroblob(90000) FROM r")
    assert 1 < len(wide.rows) < 40 and wide.more
    assert not run(START, COUNT.format("LIMIT 50") + "SELECT n FROM r").more


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nobody", "no such table: nobody"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELECT ?", "Incorrect number of bindings"),
        ("INSERT INTO t VALUES (1, 'again')", "UNIQUE constraint failed"),
        ("SELECT hex(zeroblob(1000000000))", "too big"),
        ("SELECT '" + "x" * 30_000 + "'", "too large"),
        ("SELECT 1\0", "null character"),
        ("UPDATE sqlite_master SET sql = 'x'", "may not be modified"),
    ],
)
def test_what_makes_no_sense_is_said(statement: str, says: str) -> None:
    with pytest.raises(StatementError, match=says):
        run(START, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH '{file}' AS x", "DETACH main", "VACUUM INTO '{file}'", "VACUUM", "SELECT load_extension('{file}')",
        "SELECT readfile('{file}')", "SELECT fts3_tokenizer('simple')", "CREATE VIRTUAL TABLE f USING fts5(x)",
        "CREATE TEMP TABLE q (x)", "PRAGMA writable_schema = 1", "PRAGMA journal_mode = WAL",
        "PRAGMA temp_store_directory = '/tmp'",
        "PRAGMA hard_heap_limit = 1", "PRAGMA max_page_count = 9999999", "PRAGMA user_version = 5", "BEGIN", "COMMIT", "ROLLBACK",
        "SAVEPOINT s", "SELECT * FROM sqlite_stmt",
    ],
)  # fmt: skip
def test_nothing_but_the_database_is_reached(statement: str, tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with pytest.raises(StatementError):
        run(START, statement.format(file=file))
    assert list(tmp_path.iterdir()) == []


def test_pragmas_that_look_are_allowed() -> None:
    assert [row[1] for row in run(START, "PRAGMA table_info(t)").rows] == ["a", "b"]
    assert ("main", "t", "table", 2, 0, 0) in run(START, "PRAGMA table_list").rows
    assert run(START, "SELECT name FROM pragma_table_info('t')").rows == [("a",), ("b",)]
    assert run(START, "PRAGMA integrity_check").rows == [("ok",)]


@pytest.mark.parametrize(
    ("statement", "limit"),
    [
        (COUNT.format("") + "SELECT count(*) FROM r", "cpu"),
        (COUNT.format("") + "SELECT zeroblob(90000) FROM r ORDER BY 1", "memory"),
        ("CREATE TABLE big AS " + COUNT.format("LIMIT 200") + "SELECT zeroblob(90000) AS z FROM r", "disk"),
    ],
)
def test_what_takes_too_much_is_stopped_and_changes_nothing(statement: str, limit: str) -> None:
    with pytest.raises(OverLimit) as caught:
        run(START, statement)
    assert caught.value.limit == limit
    assert run(START, "SELECT count(*) FROM t").rows == [(2,)]  # SQLite has its memory back


def test_an_endless_trigger_and_an_endless_script_end() -> None:
    looping = after("CREATE TRIGGER again AFTER INSERT ON t BEGIN INSERT INTO t (b) SELECT b FROM t; END")
    with pytest.raises((OverLimit, StatementError)):
        for _ in range(30):
            looping = after("INSERT INTO t (b) VALUES ('x')", looping)
    with pytest.raises(OverLimit):
        create("CREATE TABLE u AS " + COUNT.format("") + "SELECT n FROM r;")


def test_foreign_keys_hold_and_a_statement_is_a_transaction() -> None:
    data = create("CREATE TABLE p (a PRIMARY KEY); CREATE TABLE c (a REFERENCES p DEFERRABLE INITIALLY DEFERRED);")
    with pytest.raises(StatementError, match="FOREIGN KEY constraint failed"):
        run(data, "INSERT INTO c VALUES (5)")
    with pytest.raises(StatementError, match="UNIQUE"):
        run(data, "INSERT INTO p VALUES (1), (2), (1)")
    assert run(data, "SELECT count(*) FROM p").rows == [(0,)]


CLOCK = (
    "SELECT current_timestamp, current_date, current_time, datetime('now'), datetime(), date('now', '+1 day', 'localtime'), "
    "strftime('%Y'), unixepoch('now'), julianday('now'), random(), hex(randomblob(4)), time('12:30')"
)


def test_the_clock_stands_and_draws_repeat_in_any_process_and_zone() -> None:
    here = run(START, CLOCK).rows
    assert here[0][:7] == (
        "2024-01-01 00:00:00", "2024-01-01", "00:00:00", "2024-01-01 00:00:00", "2024-01-01 00:00:00", "2024-01-02", "2024",
    )  # fmt: skip
    assert here[0][-1] == "12:30:00"
    code = f"from tests.envfarm.test_task_database import *; print(run(START, CLOCK).rows == {here!r})"
    environ = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert run(START, "SELECT random()").rows != run(START, "SELECT  random()").rows
    assert run(START, "SELECT DISTINCT b FROM t").rows == [(database.NOW,)]


def test_the_same_database_whatever_the_way() -> None:
    other = after("INSERT INTO t (a) VALUES (1)", after("DELETE FROM t WHERE a = 1"))
    assert other != START and canonical(other) == canonical(START)
    assert canonical(after("DELETE FROM t WHERE a = 1")) != canonical(START)
    assert canonical(after("ALTER TABLE t ADD COLUMN c")) != canonical(START)
    bag = create("CREATE TABLE u (x); INSERT INTO u VALUES (1), (2), (2);")
    assert canonical(create("CREATE TABLE u (x); INSERT INTO u VALUES (2), (2), (1);")) == canonical(bag)
    assert canonical(create("CREATE TABLE u (x); INSERT INTO u VALUES (1), (1), (2);")) != canonical(bag)


@pytest.mark.parametrize("data", [b"no database at all" * 99, b"\0" * 4096, bytes(100)])
def test_what_is_no_database_is_said(data: bytes) -> None:
    with pytest.raises(StatementError):
        run(data, "SELECT * FROM t")
    assert canonical(data) == data


@given(st.lists(st.tuples(st.integers(0, len(START) - 1), st.integers(0, 255)), max_size=40), st.binary(max_size=200))
@example([(4021, 128)], b"")  # SQLite's message quotes the byte
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_an_answer(flips: list[tuple[int, int]], tail: bytes) -> None:
    data = bytearray(START)
    for at, value in flips:
        data[at] = value
    for given_ in (bytes(data), bytes(data[:5000]) + tail, tail):
        canonical(given_)
        for statement in ("SELECT * FROM t", "INSERT INTO t (b) VALUES ('x')", "PRAGMA integrity_check"):
            with suppress(StatementError, OverLimit):
                run(given_, statement)


def test_hostile_rows_are_not_unfolded() -> None:
    data = after("CREATE TABLE g (n, big AS (hex(zeroblob(49000))))", START)
    data = after("INSERT INTO g " + COUNT.format("LIMIT 3000") + "SELECT n FROM r", data)
    assert canonical(data) == data


def test_a_database_with_a_wal_is_read_as_its_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "wal.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE w (a)")
        connection.commit()
    connection.close()
    data = path.read_bytes()
    assert run(data, "SELECT count(*) FROM w").rows == [(0,)] and run(data, "SELECT 1").data is None
    assert run(after("INSERT INTO w VALUES (3)", data), "SELECT a FROM w").rows == [(3,)]
