"""`envfarm store check`: everything that a store promises, and where it does not hold.

First the files (there, and with the bytes that were written), then every record against its checksum, then the
invariants of every episode. What is damaged is reported and left alone; the rest is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from envfarm.errors import StoreError
from rollout.store.invariants import Finding, episode_findings
from rollout.store.segment import Segment
from rollout.store.store import Store
from rollout.store.tables import SCHEMAS, blob_hash, checksum, episodes_of
from rollout.types import Episode, RewardEntry


def check_store(path: str | Path) -> tuple[list[Finding], int]:
    """What is wrong, and how many episodes could be read.

    Raises: StoreError where this is no store at all, or of another schema version.
    """
    store = Store.open(path, salvage=True)
    findings = [Finding(str(path), damage) for damage in store.damages if not damage.startswith(str(store.path / "seg"))]
    read = 0
    for segment in store.segments:
        found, count = _check_segment(segment)
        findings.extend(found)
        read += count
    for episode in store.unsealed:
        findings.extend(episode_findings(episode))
        read += 1
    findings.extend(Finding(str(path), f"episode id {i} is stored more than once") for i in store.index.repeated)
    lost = set() if store.damages else store.late_ids() - set(store.index.by_id)
    findings.extend(Finding(str(path), f"a reward was appended to episode {i}, which is not there") for i in lost)
    return findings, read


def _check_segment(segment: Segment) -> tuple[list[Finding], int]:
    findings = [Finding(f"segment {segment.entry.name}", d) for d in map(segment.damage, SCHEMAS) if d]
    tables: dict[str, pa.Table] = {}
    for name in SCHEMAS:
        try:
            tables[name] = pq.read_table(segment.file(name), schema=SCHEMAS[name])
        except (OSError, pa.ArrowException) as error:
            findings.append(Finding(str(segment.file(name)), f"cannot be read: {str(error).splitlines()[0]}"))
    if len(tables) < len(SCHEMAS):
        return findings, 0
    findings.extend(_blob_findings(segment, tables["blobs"]))
    try:
        found = list(_record_findings(tables))
    except (KeyError, msgspec.ValidationError, ValueError, UnicodeDecodeError) as error:
        findings.append(Finding(f"segment {segment.entry.name}", f"its tables do not fit together: {error!r}"))
        return findings, 0
    return findings + [f for per_episode in found for f in per_episode], len(found)


def _blob_findings(segment: Segment, blobs: pa.Table) -> Iterator[Finding]:
    for row, (key, data) in enumerate(zip(blobs["hash"].to_pylist(), blobs["data"].to_pylist(), strict=True)):
        if blob_hash(data) != key:
            yield Finding(f"{segment.file('blobs')}, row {row}", f"the text does not match its hash {key}: {data[:60]!r}")


def _record_findings(tables: dict[str, pa.Table]) -> Iterator[list[Finding]]:
    """Per episode: records that do not match their checksums, and broken invariants."""
    sums: dict[str, dict[str, list[str]]] = {}
    for name in ("nodes", "steps", "rewards"):
        table = tables[name]
        for episode_id, stored in zip(table["episode_id"].to_pylist(), table["checksum"].to_pylist(), strict=True):
            sums.setdefault(episode_id, {}).setdefault(name, []).append(stored)
    for episode, stored, appended in episodes_of(tables):
        findings = list(_mismatches(episode, stored, appended, sums.get(episode.id, {})))
        yield [*findings, *episode_findings(episode)]
    present = set(tables["episodes"]["id"].to_pylist())
    for episode_id in sums.keys() - present:
        if set(sums[episode_id]) != {"rewards"}:  # a reward may be appended to an episode of another segment
            yield [Finding(f"episode {episode_id}", "has nodes or steps here, and no row of its own")]


def _mismatches(episode: Episode, stored: str, appended: list[RewardEntry], sums: dict[str, list[str]]) -> Iterator[Finding]:
    where = f"episode {episode.id}"
    parts: dict[str, list[Any]] = {"nodes": episode.nodes, "steps": episode.steps, "rewards": [*episode.rewards, *appended]}
    clean = True
    for name, records in parts.items():
        for index, (record, expected) in enumerate(zip(records, sums.get(name, []), strict=False)):
            if checksum(record) != expected:
                clean = False
                yield Finding(f"{where}, {name[:-1]} {index}", f"does not match its checksum: {_shown(name, record)}")
    if clean and checksum(episode) != stored:
        yield Finding(where, "its row, or the number of its nodes, steps, branches or rewards, does not match its checksum")


def _shown(name: str, record: object) -> str:
    kept = {"nodes": ("seat", "turn", "token_ids"), "steps": ("seat", "observation", "action"), "rewards": ("seat", "value")}
    text = ", ".join(f"{field} {getattr(record, field)!r}" for field in kept[name])
    return text if len(text) <= 200 else text[:197] + "..."


__all__ = ["Finding", "StoreError", "check_store"]
