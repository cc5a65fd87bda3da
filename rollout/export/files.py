"""Files of records, written one by one: a store may be larger than memory.

with Lines(folder / "replies.jsonl") as text, Table(folder / "tokens.parquet", SCHEMA) as exact:
    text.add({...})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq


class Lines:
    """One JSON object per line."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0

    def __enter__(self) -> Self:
        self._file: BinaryIO = self.path.open("wb")
        return self

    def add(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Table:
    """A Parquet file, which only appears with the first record."""

    ROWS = 1024  # of a row group: what is held in memory

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema = path, schema
        self._records: list[Mapping[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, record: Mapping[str, Any]) -> None:
        self._records.append(record)
        if len(self._records) == self.ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, self.schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._records, schema=self.schema))
        self._records = []

    def __exit__(self, kind: object, *_: object) -> None:
        if self._records and kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()
