"""One episode per line, everything in it: what `rollout.types.Episode` holds, as JSON. `read` gives the episodes back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from envfarm.errors import StoreError
from rollout.types import Episode


def write(episodes: Iterable[Episode], path: Path) -> int:
    """Write the file, whole or not at all. Raises: StoreError where the disk refuses."""
    partial, count = path.with_name(path.name + ".tmp"), 0
    encode = msgspec.json.Encoder().encode
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for count, episode in enumerate(episodes, start=1):  # noqa: B007 - the count is what comes back
                file.write(encode(episode) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}; the store is untouched") from error
    return count


def read(path: Path) -> Iterator[Episode]:
    """Raises: StoreError naming the line that is no episode."""
    decode = msgspec.json.Decoder(Episode).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield decode(line)
            except msgspec.DecodeError as error:
                raise StoreError(f"{path}, line {number}: {error}") from error
