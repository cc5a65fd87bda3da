"""DuckDB over a store: one view per table, sealed and unsealed rows together, blobs written out.

`nodes.content`, `steps.observation`, `episodes.instance`, `.tools`, `.perturbations` and `.final_observation` stand in
the views as text; the hashes stay beside them as `*_blob`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from envfarm.errors import StoreError
from rollout.store.segment import Segment
from rollout.store.tables import SCHEMAS


def run_query(segments: Sequence[Segment], unsealed: Mapping[str, pa.Table], query: str) -> list[dict[str, Any]]:
    """Rows as dictionaries. Raises: StoreError with DuckDB's words where the query is wrong, or a segment is damaged."""
    with duckdb.connect() as connection:
        try:
            _create_views(connection, segments, unsealed)
        except duckdb.Error as error:
            raise StoreError(
                f"{error}. `envfarm store check` says what is damaged, `envfarm store repair` sets it aside"
            ) from error
        try:
            found = connection.execute(query)
        except duckdb.Error as error:
            raise StoreError(f"the query failed: {error}. Tables: {', '.join(SCHEMAS)}") from error
        columns = [c[0] for c in found.description]
        return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]


def _create_views(connection: duckdb.DuckDBPyConnection, segments: Sequence[Segment], unsealed: Mapping[str, pa.Table]) -> None:
    for name in SCHEMAS:
        connection.register(f"unsealed_{name}", unsealed[name])
        parts = [f"SELECT * FROM unsealed_{name}"]
        files = [str(s.file(name)) for s in segments]
        if files:
            listed = ", ".join("'" + f.replace("'", "''") + "'" for f in files)
            parts.append(f"SELECT * FROM read_parquet([{listed}])")
        connection.execute(f'CREATE TEMP VIEW "raw_{name}" AS {" UNION ALL BY NAME ".join(parts)}')
    connection.execute("CREATE TEMP VIEW blobs AS SELECT DISTINCT hash, data FROM raw_blobs")
    for name in SCHEMAS:
        if name != "blobs":
            connection.execute(_view(name))


def _view(name: str) -> str:
    blobs = [c for c in SCHEMAS[name].names if c.endswith("_blob")]
    columns = ["t.*", *(f'b{i}.data AS "{c.removesuffix("_blob")}"' for i, c in enumerate(blobs))]
    joins = [f"LEFT JOIN blobs b{i} ON b{i}.hash = t.{c}" for i, c in enumerate(blobs)]
    return f'CREATE TEMP VIEW "{name}" AS SELECT {", ".join(columns)} FROM "raw_{name}" t {" ".join(joins)}'
