"""What makes a run resumable: one trainer per run directory, and one atomic checkpoint that commits everything at once.

    RUN/lock                       held with flock while a trainer lives; names its pid
    RUN/checkpoints/00000042/      weights, optimizer, state.json; the highest number counts, the others are removed

A checkpoint is written into a folder of another name, synced to disk and renamed: it is there as a whole or not at
all. State that is committed elsewhere (the store's episodes, files of earlier stages) is written before it and is
either found again by its key or written again with the same bytes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from envfarm.errors import RunFileError, RunLockedError, StoreError
from envfarm.seeding import stable_hash


class RunState(msgspec.Struct, kw_only=True):
    """Where a run stands. Everything that the next step depends on, weights and optimizer aside."""

    run_hash: str  # of the run file's meaning
    incarnation: int = 0  # how often the run was started
    stage: int = 0  # index of the stage under way, counting those that the run file implies
    step: int = 0  # optimizer steps done within it
    number: int = 0  # optimizer steps done since the weights were made
    consumed: dict[str, int] = {}  # stage -> groups or rows trained on so far: the store's consumption cursor
    ahead: list[int] = []  # asynchronous stages: groups consumed beyond the first `consumed` of them
    history: list[float] = []  # validation losses of the stage under way
    counters: dict[str, float] = {}  # tokens, episodes, ... by name
    wall_s: dict[str, float] = {}  # kind of work -> seconds; for people only
    tokenizer_hash: str = ""
    threads: int = 0
    checksum: str = ""  # of the weights


class RunLock:
    """A context: the run directory is ours.

    Raises: RunLockedError naming the process that holds it; RunFileError where the place can be no directory of ours.
    """

    def __init__(self, run_dir: Path):
        self.path = run_dir / "lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+", encoding="utf-8")
        except OSError as error:
            raise RunFileError(
                f"{self.path.parent} cannot be this run's directory: {error.strerror or error}; give another `output`"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise RunLockedError(
                f"{self.path.parent}: another trainer (pid {holder}) is at work in this run directory; wait for it, stop "
                "it, or give another `output`"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()  # frees the lock; the file stays, so that nobody locks a name that is gone
            self._file = None


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path):
        self.folder = run_dir / "checkpoints"

    def latest(self) -> tuple[RunState, Path] | None:
        """Raises: StoreError where it is damaged."""
        found = self._complete()
        if not found:
            return None
        path = found[-1]
        try:
            return msgspec.json.decode((path / "state.json").read_bytes(), type=RunState), path
        except (OSError, msgspec.DecodeError) as error:
            raise StoreError(f"{path}/state.json: damaged ({error}); remove the run directory to begin again") from None

    def commit(self, state: RunState, save_weights: Callable[[Path], str] | None) -> None:
        """`save_weights` writes weights and optimizer into a folder and returns the checksum (none yet before there
        are any). When this returns the checkpoint is on disk.

        Raises: StoreError where the disk refuses; the checkpoint before stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self._complete()
        number = int(found[-1].name) + 1 if found else 0
        draft = self.folder / f".{number:08d}.{os.getpid()}"
        try:
            draft.mkdir()
            if save_weights is not None:
                state.checksum = save_weights(draft)
            (draft / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state)))
            for file in draft.iterdir():
                _sync(file)
            _sync(draft)
            os.rename(draft, self.folder / f"{number:08d}")
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise StoreError(
                f"{self.folder}: cannot write a checkpoint: {error.strerror or error}. The one before is whole; free "
                "some space and start the same command again"
            ) from error
        for old in found:
            shutil.rmtree(old)

    def sweep(self) -> None:
        """Remove drafts that a killed trainer left."""
        if self.folder.is_dir():
            for draft in self.folder.glob(".*"):
                shutil.rmtree(draft)

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("[0-9]*") if p.is_dir()) if self.folder.is_dir() else []


def next_incarnation(run_dir: Path) -> int:
    """How often this run was started before; counted on disk at once, so that no two starts share a number."""
    path = run_dir / "incarnation"
    count = int(path.read_text()) if path.exists() else 0
    write_atomically(path, f"{count + 1}\n".encode())
    return count


def check_same_run(state: RunState, run_hash: str, run_dir: Path) -> None:
    """Raises: RunFileError where the directory belongs to another run file."""
    if state.run_hash != run_hash:
        raise RunFileError(
            f"{run_dir} was begun with another run file (its meaning differs); give another `output`, or remove the "
            "directory to begin again"
        )


def write_atomically(path: Path, data: bytes) -> None:
    """The file appears whole or not at all, and stays after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(data)
    _sync(draft)
    os.replace(draft, path)
    _sync(path.parent)


def meaning(document: Any) -> str:
    """The hash of a run file's meaning: of its values, wherever they stand. Where the run is kept (`output`) and where it
    is played (`ray`) are no part of it."""
    return stable_hash({k: v for k, v in document.items() if k not in ("output", "ray")})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
