"""`tools: [{sql: {database: /task/shop.db}}]`: SQL on a SQLite file that lies in the box.

The statement runs in the worker's memory on the file's bytes (`envfarm.task.database`), and the file is replaced where it
changed: no program in the box is needed, and every backend shows the same. `create` is SQL that makes the file at the
start; without it `setup` or `files` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envfarm.blocks import Block, Blocks, Table, Text
from envfarm.errors import SpecError
from envfarm.task import database
from envfarm.task.stock import Stock, told
from envfarm.tools import ToolError, tool

SHOWN_CELL_CHARS = 200
SHOWN_ROW_CHARS = 4000
"""Of all rows together."""


class Sql(Stock):
    @classmethod
    def made_files(cls, options: Mapping[str, str]) -> dict[str, bytes]:
        made = super().made_files(options)
        if "create" in options:
            try:
                made[options["database"]] = database.create(options["create"])
            except (database.StatementError, database.OverLimit) as error:
                raise SpecError(f"task.tools: sql.create fails: {error}") from error
        return made

    @tool
    def sql(self, statement: str) -> Blocks:
        """Run one SQL statement on the SQLite database. PRAGMA table_list and table_info(name) say what is there.

        statement: what to run
        """
        path = self.options["sql"]["database"]
        with told(path):
            data = self.place.read(path, max_bytes=database.MAX_BYTES)
        try:
            result = database.run(data, statement)
        except database.StatementError as error:
            raise ToolError(f"error: {error}") from error
        except database.OverLimit as error:
            self.strike()
            return (Text(f"stopped: {error}"),)
        if result.data is not None:
            self.put(path, result.data)
        return shown(result)

    def noise(self) -> tuple[str, ...]:
        """Looks into tables, and empties them."""
        lines = ["sql SELECT name FROM sqlite_master"]
        try:
            data = self.place.read(self.options["sql"]["database"], max_bytes=database.MAX_BYTES)
            names = database.run(data, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").rows
        except (OSError, ValueError, database.StatementError, database.OverLimit):
            names = []
        for (name,) in names:
            lines += [f"sql SELECT * FROM {name}", f"sql SELECT count(*) FROM {name}", f"sql DELETE FROM {name}"]
        return (*super().noise(), *lines, "submit")


def shown(result: database.Result) -> Blocks:
    """What an agent sees: the rows as a table, else how many were changed."""
    if not result.columns:
        changed = result.changed_rows
        return (Text("ok" if changed < 0 else f"{changed} row{'' if changed == 1 else 's'} changed"),)
    rows: list[tuple[str, ...]] = []
    left = SHOWN_ROW_CHARS
    for row in result.rows:
        cells = tuple(_cell(value) for value in row)
        left -= sum(map(len, cells))
        if left < 0 and rows:
            break
        rows.append(cells)
    blocks: list[Block] = [Table(result.columns, tuple(rows), exact=True)]
    if not rows:
        blocks.append(Text("no rows"))
    elif result.more or len(rows) < len(result.rows):
        blocks.append(Text(f"only the first {len(rows)} rows are shown"))
    return tuple(blocks)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    text = f"x'{value[:SHOWN_CELL_CHARS].hex()}'" if isinstance(value, bytes) else str(value)
    text = text.replace("\n", "\\n").replace("\r", "\\r")
    return text if len(text) <= SHOWN_CELL_CHARS else f"{text[:SHOWN_CELL_CHARS]}..."
