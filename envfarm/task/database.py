"""SQL on the bytes of one SQLite database: what `tools: [sql]` runs, in the worker's memory and nowhere else.

The bytes come out of a box and go back into it; the database never has a file here, so a statement reaches nothing but
itself. An allow-list says which actions a statement may take (no ATTACH, no extensions, no virtual tables, no temporary
ones, no transaction of its own: each statement is one), limits say how much work, memory, size and text it may make.

What else would differ from run to run is pinned: the time is `NOW`, the time zone UTC, and what `random()` draws depends
on the statement and the database alone. Same database and same statement: same rows and same bytes, on every backend.

Where the file comes from an agent's hands it is read as it is, WAL files beside it are not looked at.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Limit = Literal["cpu", "memory", "disk"]

NOW = "2024-01-01 00:00:00"
MAX_BYTES = 8 << 20
"""Of a database."""
MAX_STEPS = 20_000_000
"""Instructions of SQLite's virtual machine for one statement: about half a second. The same on every machine."""
MAX_CPU_S = 5.0
"""For single instructions that take long; the steps run out before on any statement that is many short ones."""
MAX_HEAP_BYTES = 256 << 20
"""What SQLite may take in this process. One statement runs at a time, so it is the one that took it."""
MAX_ROWS = 50
MAX_ROW_BYTES = 1 << 20
"""Of all rows that are read, about; more of them are `more`."""
_STEPS_PER_LOOK = 200

_VALUES = {
    "LENGTH": 100_000, "SQL_LENGTH": 20_000, "COLUMN": 200, "EXPR_DEPTH": 100, "COMPOUND_SELECT": 50, "VDBE_OP": 25_000,
    "FUNCTION_ARG": 20, "ATTACHED": 0, "LIKE_PATTERN_LENGTH": 200, "VARIABLE_NUMBER": 100, "TRIGGER_DEPTH": 20,
    "WORKER_THREADS": 0,
}  # fmt: skip
"""SQLite's own limits: of one value or row in bytes, of a statement, and so on."""

_ACTIONS = frozenset(
    getattr(sqlite3, f"SQLITE_{name}")
    for name in (
        "CREATE_INDEX", "CREATE_TABLE", "CREATE_TRIGGER", "CREATE_VIEW", "DELETE", "DROP_INDEX", "DROP_TABLE", "DROP_TRIGGER",
        "DROP_VIEW", "INSERT", "READ", "SELECT", "UPDATE", "ALTER_TABLE", "REINDEX", "ANALYZE", "RECURSIVE",
    )
)  # fmt: skip
_PRAGMAS = frozenset({
    "table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list",
    "foreign_key_check", "integrity_check", "quick_check",
})  # fmt: skip
"""Those that look and change nothing."""
_FUNCTIONS_DENIED = frozenset({"load_extension", "fts3_tokenizer"})
_TABLES_DENIED = frozenset({"sqlite_stmt"})
"""What SQLite tells about itself: not the same everywhere."""
_CLOCK = ("date", "time", "datetime", "julianday", "strftime", "unixepoch")

_one_at_a_time = threading.Lock()


class StatementError(Exception):
    """The statement makes no sense on this database; the text says why. The database is as it was."""


class OverLimit(Exception):
    """The statement asked for too much; the database is as it was."""

    def __init__(self, limit: Limit):
        super().__init__(f"{limit} limit")
        self.limit: Limit = limit


@dataclass(frozen=True)
class Result:
    """What one statement did."""

    columns: tuple[str, ...]  # empty where it returns no rows
    rows: list[tuple[Any, ...]]  # the first `max_rows`
    more: bool  # there were more rows
    changed_rows: int  # by INSERT, UPDATE, DELETE; -1 for other statements
    data: bytes | None  # the database, where it is another now


def run(data: bytes, statement: str, *, max_rows: int = MAX_ROWS) -> Result:
    """Run one statement. Raises: StatementError, OverLimit; either way nothing changed."""
    with _opened(data, statement) as (connection, before):
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN")
        with _watched(connection):
            cursor = connection.execute(statement)
            columns = tuple(d[0] for d in cursor.description or ())
            rows, more = _fetched(cursor, max_rows, MAX_ROW_BYTES)
            changed = cursor.rowcount
            cursor.close()
        connection.execute("COMMIT")
        after = connection.serialize()
    return Result(columns, rows, more, changed, after if after != before else None)


def _fetched(cursor: sqlite3.Cursor, max_rows: int, max_bytes: int) -> tuple[list[tuple[Any, ...]], bool]:
    """The first rows, and whether there are more."""
    rows: list[tuple[Any, ...]] = []
    for row in cursor:
        max_bytes -= sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if len(rows) == max_rows or max_bytes < 0:
            return rows, True
        rows.append(row)
    return rows, False


def create(script: str) -> bytes:
    """A new database made by the author's SQL, of any number of statements. Raises: StatementError, OverLimit."""
    with _opened(b"", script) as (connection, _):
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_BYTES)
        with _watched(connection, authorized=False):
            connection.executescript(script)
        return connection.serialize()


def canonical(data: bytes) -> bytes:
    """Schema and rows as text, the same for two databases that hold the same: whatever their pages, row ids and the
    order of rows. What is no database, or too much of one, stays as it is."""
    try:
        with _opened(data, "") as (connection, _), _watched(connection):
            schema = connection.execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
            ).fetchall()
            lines = [repr((kind, name, of, " ".join((sql or "").split()))) for kind, name, of, sql in schema]
            for name in (row[1] for row in schema if row[0] == "table"):
                quoted = name.replace('"', '""')
                rows, more = _fetched(connection.execute(f'SELECT * FROM "{quoted}"'), MAX_BYTES, 2 * MAX_BYTES)
                if more:
                    return data
                lines += sorted(repr((name, *row)) for row in rows)
    except (StatementError, OverLimit):
        return data
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@contextmanager
def _opened(data: bytes, statement: str) -> Iterator[tuple[sqlite3.Connection, bytes]]:
    """The database in memory, and its bytes as SQLite was given them. SQLite's errors become ours."""
    if len(data) > MAX_BYTES:
        raise StatementError(f"the database is larger than {MAX_BYTES >> 20} MiB")
    if data[18:20] == b"\2\2":  # marked as having a WAL, which a database in memory cannot have
        data = data[:18] + b"\1\1" + data[20:]
    with _one_at_a_time, closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        try:
            if data:
                connection.deserialize(data)
            _limit(connection)
            _pin(connection, random.Random(hashlib.sha256(data + statement.encode()).digest()))
            yield connection, data
        except MemoryError:
            raise OverLimit("memory") from None
        except UnicodeDecodeError as error:  # the message of SQLite's error quotes what is damaged
            raise StatementError(error.object.decode("utf-8", "replace")) from None
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _told(error) from None


def _told(error: Exception) -> StatementError | OverLimit:
    text = str(error)
    if text == "interrupted":
        return OverLimit("cpu")
    if "disk is full" in text:
        return OverLimit("disk")
    return StatementError(text)


def _limit(connection: sqlite3.Connection) -> None:
    for name, value in _VALUES.items():
        connection.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), value)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP_BYTES}")
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {MAX_BYTES // page_bytes}")


@contextmanager
def _watched(connection: sqlite3.Connection, *, authorized: bool = True) -> Iterator[None]:
    """While a statement that is not ours runs: what it may do (unless it is the author's), and how long."""
    steps, until = 0, time.thread_time() + MAX_CPU_S

    def too_long() -> bool:
        nonlocal steps
        steps += _STEPS_PER_LOOK
        return steps > MAX_STEPS or time.thread_time() > until

    connection.set_authorizer(_authorize if authorized else None)
    connection.set_progress_handler(too_long, _STEPS_PER_LOOK)
    yield
    connection.set_progress_handler(None, 0)
    connection.set_authorizer(None)


def _authorize(action: int, one: str | None, two: str | None, database: str | None, inside: str | None) -> int:
    if action == sqlite3.SQLITE_PRAGMA:
        allowed = (one or "").lower() in _PRAGMAS
    elif action == sqlite3.SQLITE_FUNCTION:
        allowed = two not in _FUNCTIONS_DENIED
    else:
        allowed = action in _ACTIONS and not (action == sqlite3.SQLITE_READ and one in _TABLES_DENIED)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _pin(connection: sqlite3.Connection, rng: random.Random) -> None:
    """Replace the functions that would look at the clock or at the machine's random numbers."""
    for name in _CLOCK:
        connection.create_function(name, -1, _clock(name), deterministic=True)
    date, clock = NOW.split(" ")
    for name, value in (("current_timestamp", NOW), ("current_date", date), ("current_time", clock)):
        connection.create_function(name, 0, lambda value=value: value, deterministic=True)
    connection.create_function("random", 0, lambda: rng.getrandbits(64) - (1 << 63))
    connection.create_function("randomblob", 1, lambda size: rng.randbytes(max(1, min(int(size), _VALUES["LENGTH"]))))


def _clock(name: str) -> Callable[..., Any]:
    """SQLite's own date function at `NOW`, in UTC."""

    def at_now(*given: Any) -> Any:
        words = [NOW if isinstance(w, str) and w.lower() == "now" else w for w in given]
        words = [w for w in words if not (isinstance(w, str) and w.lower() in ("localtime", "utc"))]
        if len(words) == (name == "strftime"):
            words.append(NOW)
        with closing(sqlite3.connect(":memory:")) as plain:
            return plain.execute(f"SELECT {name}({', '.join('?' * len(words))})", words).fetchone()[0]

    return at_now
