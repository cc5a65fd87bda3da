"""Sealed Parquet: one folder per segment, written aside and renamed in, never changed afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from envfarm.errors import StoreError
from rollout.store.manifest import FileEntry, SegmentEntry, file_sha256, sync_folder
from rollout.store.tables import SCHEMAS, episodes_of
from rollout.types import Episode, RewardEntry

INDEX_COLUMNS = [
    "id", "run", "stage", "step", "group", "index", "member", "attempt", "env", "split", "stop", "instance_hash", "seats",
]  # fmt: skip


def write_segment(folder: Path, name: str, tables: Mapping[str, pa.Table]) -> SegmentEntry:
    """Write `folder/name/*.parquet`, durably. A folder of that name that no manifest names is replaced.

    Raises: OSError (pyarrow's are OSErrors too), with nothing left behind.
    """
    final, partial = folder / name, folder / f"{name}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    files: dict[str, FileEntry] = {}
    try:
        partial.mkdir(parents=True)
        for table_name, table in tables.items():
            path = partial / f"{table_name}.parquet"
            pq.write_table(table, path, compression="zstd")
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[table_name] = FileEntry(file_sha256(path), table.num_rows)
        sync_folder(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return SegmentEntry(name, files)


class Segment:
    """A sealed segment, read. The files' checksums are compared before the first read."""

    def __init__(self, folder: Path, entry: SegmentEntry):
        self.path, self.entry = folder / entry.name, entry
        self._verified: set[str] = set()

    def damage(self, table: str) -> str:
        """What is wrong with a table's file, or an empty string."""
        path = self.file(table)
        if not path.is_file():
            return f"{path} is missing"
        if file_sha256(path) != self.entry.files[table].sha256:
            return f"{path} is damaged: it does not match its checksum"
        return ""

    def file(self, table: str) -> Path:
        return self.path / f"{table}.parquet"

    def index(self) -> pa.Table:
        """The columns that say which episodes are here. Raises: StoreError."""
        return self._read("episodes", INDEX_COLUMNS)

    def rewards(self) -> pa.Table:
        return self._read("rewards", None)

    def episodes(self) -> Iterable[tuple[Episode, str, list[RewardEntry]]]:
        """Every episode, its stored checksum and its appended rewards. Raises: StoreError where a file is damaged."""
        return episodes_of({name: self._read(name, None) for name in SCHEMAS})

    def verify(self) -> None:
        """Every table's file is there and whole. Raises: StoreError naming the first that is not."""
        for table in SCHEMAS:
            self._verify(table)

    def _verify(self, table: str) -> None:
        if table in self._verified:
            return
        damage = self.damage(table)
        if damage:
            raise StoreError(
                f"{damage}. The other segments are untouched: `envfarm store check` says what is readable, "
                "`--salvage` reads it, `envfarm store repair` sets the damaged part aside"
            )
        self._verified.add(table)

    def _read(self, table: str, columns: list[str] | None) -> pa.Table:
        self._verify(table)
        return pq.read_table(self.file(table), columns=columns)
