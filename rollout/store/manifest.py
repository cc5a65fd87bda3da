"""What a store says about itself: its schema version, tokenizer and template, and the segments that make it up.

The manifest is replaced by one rename; a segment exists once the manifest names it, and its journal is then spent.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import msgspec

from envfarm.errors import StoreError
from rollout.types import SCHEMA_VERSION

NAME = "manifest.json"


class FileEntry(msgspec.Struct, frozen=True):
    """One Parquet file of a segment."""

    sha256: str
    rows: int


class SegmentEntry(msgspec.Struct, frozen=True):
    """One sealed segment; `name` is also the name of the journal that it replaced."""

    name: str
    files: dict[str, FileEntry]  # table -> file


class Manifest(msgspec.Struct, kw_only=True):
    """The content of `manifest.json`."""

    kind: str = "envfarm-store"
    schema_version: int = SCHEMA_VERSION
    tokenizer_hash: str = ""  # empty until something with tokens is stored
    template_hash: str = ""
    spent: int = 0  # the highest number that a sealed journal had; the journal in force is the next
    segments: list[SegmentEntry] = []

    def write(self, folder: Path) -> None:
        """Replace the manifest on disk, durably. Raises: OSError."""
        path = folder / NAME
        body = msgspec.to_builtins(self)
        text = json.dumps({**body, "checksum": _checksum(body)}, indent=1)
        partial = path.with_suffix(".tmp")
        write_durably(partial, text.encode())
        os.replace(partial, path)
        sync_folder(folder)

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Raises: StoreError where this is no store, its manifest is damaged or of another schema version."""
        path = folder / NAME
        if not path.is_file():
            what = "no such directory" if not folder.exists() else f"it holds no {NAME}"
            raise StoreError(f"{folder} is not a store: {what}. A store is a directory that `envfarm rollout --out` made")
        try:
            body = json.loads(path.read_text())
            stored = body.pop("checksum")
        except (ValueError, KeyError, AttributeError) as error:
            raise StoreError(f"{path} is damaged: {error}. The segments and journals beside it are untouched") from error
        if body.get("kind") != "envfarm-store":
            raise StoreError(f"{folder} is not a store: {path} is of kind {body.get('kind')!r}")
        if body.get("schema_version") != SCHEMA_VERSION:
            raise StoreError(
                f"{folder} has schema version {body.get('schema_version')}; this envfarm reads version {SCHEMA_VERSION}. "
                "Open it with the version of envfarm that wrote it"
            )
        if stored != _checksum(body):
            raise StoreError(f"{path} is damaged: it does not match its checksum. What it names is untouched")
        try:
            return msgspec.convert(body, Manifest)
        except msgspec.ValidationError as error:
            raise StoreError(f"{path} is damaged: {error}") from error


def _checksum(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Write and fsync. Raises: OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
