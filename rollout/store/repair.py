"""`envfarm store repair`: what is damaged is moved into `damaged/`, nothing is deleted, the rest is in force again.

A segment with a damaged file is moved as a whole. A journal with a damaged record is copied there, and goes on without
that record.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from envfarm.errors import StoreError
from rollout.store.journal import frame, read_frames
from rollout.store.manifest import Manifest, sync_folder, write_durably
from rollout.store.segment import Segment
from rollout.store.store import lock_store
from rollout.store.tables import SCHEMAS


def repair_store(path: Path) -> list[str]:
    """What was set aside, and why. Raises: StoreError where this is no store, it is being written, or the disk refuses."""
    Manifest.read(path)
    lock = lock_store(path)
    try:
        manifest = Manifest.read(path)
        return [*_segments(path, manifest), *_journals(path)]
    except OSError as error:
        raise StoreError(f"{path} cannot be repaired: {error.strerror}; nothing was lost") from error
    finally:
        os.close(lock)


def _segments(path: Path, manifest: Manifest) -> list[str]:
    moved = []
    for entry in list(manifest.segments):
        segment = Segment(path / "segments", entry)
        damages = [d for d in map(segment.damage, SCHEMAS) if d]
        if not damages:
            continue
        manifest.segments.remove(entry)
        manifest.write(path)
        if segment.path.exists():
            os.rename(segment.path, _aside(path, entry.name))
        moved.append(f"segment {entry.name}: {'; '.join(damages)}")
    return moved


def _journals(path: Path) -> list[str]:
    moved = []
    for journal in sorted((path / "journal").glob("*.log")):
        frames = list(read_frames(journal.read_bytes()))
        damaged = [f for f in frames if f.damage and not f.torn]
        if not damaged:
            continue
        shutil.copy2(journal, _aside(path, journal.name))
        partial = journal.with_suffix(".tmp")
        write_durably(partial, b"".join(frame(f.payload) for f in frames if not f.damage))
        os.replace(partial, journal)
        sync_folder(journal.parent)
        moved += [f"journal {journal.name}, byte {f.offset}: {f.damage}" for f in damaged]
    return moved


def _aside(path: Path, name: str) -> Path:
    """A place in `damaged/` that is not taken."""
    folder = path / "damaged"
    folder.mkdir(exist_ok=True)
    return next(p for n in range(1_000_000) if not (p := folder / (f"{name}.{n}" if n else name)).exists())
