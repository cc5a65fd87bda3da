"""An environment's folder as one deterministic archive, so that it reaches workers on other machines.

    made = bundle(spec)                  # here
    spec = load_spec(unpack(made, root)) # there: the same hash

Content-addressed: equal folders give equal bytes and one digest, `unpack` keeps one copy per digest and checks it.
Holds what the spec's hash covers, and the YAML files. Links inside the folder travel as the files they point to.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from envfarm.errors import UserError
from envfarm.spec_hash import folder_files

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec

MAX_BYTES = 256 << 20
"""Of a bundle; larger data should be baked into the worker's image."""


class Bundle(msgspec.Struct, frozen=True):
    digest: str
    """64 hex digits over `data`."""
    file: str
    """The environment's YAML, relative to the folder."""
    data: bytes
    """An uncompressed tar."""


def bundle(spec: EnvSpec) -> Bundle:
    """Pack the spec's folder. Raises: UserError above `MAX_BYTES`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in folder_files(spec.folder):
            content = path.read_bytes()
            if buffer.tell() + len(content) > MAX_BYTES:
                raise UserError(f"{spec.id}: the folder {spec.folder} is larger than {MAX_BYTES >> 20} MiB")
            entry = tarfile.TarInfo(path.relative_to(spec.folder).as_posix())
            entry.size = len(content)
            entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(entry, io.BytesIO(content))
    data = buffer.getvalue()
    return Bundle(hashlib.sha256(data).hexdigest(), spec.file.name, data)


def unpack(made: Bundle, root: Path) -> Path:
    """The YAML file of the bundle, unpacked below `root` once; safe when several processes do it at a time.

    Raises: UserError where the data does not have its digest, or holds anything but files below its folder.
    """
    if hashlib.sha256(made.data).hexdigest() != made.digest:
        raise UserError(f"the bundle {made.digest[:12]} is damaged: its content has another digest")
    target = root / made.digest
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=root))
        try:
            _extract(made, fresh)
            try:
                fresh.rename(target)
            except OSError:  # another process was first
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target / made.file


def _extract(made: Bundle, folder: Path) -> None:
    """By hand: `tarfile`'s own filter is younger than Python 3.11.2, which images have. Raises: UserError."""
    with tarfile.open(fileobj=io.BytesIO(made.data)) as archive:
        for entry in archive:
            path = PurePosixPath(entry.name)
            if not entry.isreg() or path.is_absolute() or ".." in path.parts:
                raise UserError(f"the bundle {made.digest[:12]} holds {entry.name!r}, which is no file below its folder")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(entry)
            assert content is not None
            target.write_bytes(content.read())
            target.chmod(entry.mode & 0o755)
