"""A directory of a box as a tar, written and read through descriptors, links never followed.

Owner and group are not recorded: everything in a box belongs to the agent. Hard links become copies; fifos and sockets
stay behind. Entries are in sorted order, so equal trees with equal times give equal bytes.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from typing import IO

from envfarm.backends.nodes import walk

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(fd: int, max_bytes: int) -> bytes:
    """The tree below an open directory. Raises ValueError above `max_bytes` of file content."""
    out = io.BytesIO()
    left = max_bytes
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, parent in walk(fd):
            name = entry.path.rpartition("/")[2]
            if entry.kind == "other":
                continue
            status = os.lstat(name, dir_fd=parent)
            info = tarfile.TarInfo(entry.path)
            info.mode, info.mtime = entry.mode, int(status.st_mtime)
            content = b""
            if entry.kind == "directory":
                info.type = tarfile.DIRTYPE
            elif entry.kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, entry.target
            else:
                left -= entry.size
                if left < 0:
                    raise ValueError(f"a snapshot holds at most {max_bytes} bytes; {entry.path} is beyond that")
                content = _content(name, parent, entry.size)
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _content(name: str, parent: int, size: int) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    with os.fdopen(fd, "rb") as file:
        return file.read(size)


def unpack(fd: int, data: bytes) -> None:
    """Write a tar that `pack` made into an open, empty directory. Times and modes last, as writing changes them."""
    later: list[tuple[str, tarfile.TarInfo]] = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r") as tar:
        for info in tar:
            parent, name = _open_parent(fd, info.name)
            try:
                if info.isdir():
                    os.mkdir(name, 0o700, dir_fd=parent)
                    later.append((info.name, info))
                elif info.issym():
                    os.symlink(info.linkname, name, dir_fd=parent)
                    os.utime(name, (info.mtime, info.mtime), dir_fd=parent, follow_symlinks=False)
                elif info.isreg():
                    _write(name, parent, tar.extractfile(info), info)
            finally:
                os.close(parent)
    for path, info in reversed(later):
        parent, name = _open_parent(fd, path)
        try:
            below = os.open(name, _DIRECTORY, dir_fd=parent)
        finally:
            os.close(parent)
        os.fchmod(below, stat.S_IMODE(info.mode))
        os.utime(below, (info.mtime, info.mtime))
        os.close(below)


def _open_parent(fd: int, path: str) -> tuple[int, str]:
    *directories, name = path.split("/")
    here = os.dup(fd)
    for directory in directories:
        below = os.open(directory, _DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    return here, name


def _write(name: str, parent: int, source: IO[bytes] | None, info: tarfile.TarInfo) -> None:
    assert source is not None
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    with os.fdopen(fd, "wb") as file:
        file.write(source.read())
        file.flush()
        os.fchmod(file.fileno(), stat.S_IMODE(info.mode))
        os.utime(file.fileno(), (info.mtime, info.mtime))


def canonical(data: bytes, max_bytes: int) -> bytes:
    """A tar that something in a box made, as `pack` would have made it. Nothing in it is believed but names, modes, times and
    contents. Raises: ValueError where it is no tar, or has names that lead out of it, or is larger than allowed."""
    kept: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                name = _inside(info.name)
                if name:
                    content = _content_of(info, tar, kept)
                    kept[name] = _described(name, info, len(content)), content
    except (tarfile.TarError, OverflowError) as error:
        raise ValueError(f"the box's tar cannot be read: {error}") from None
    if sum(len(content) for _, content in kept.values()) > max_bytes:
        raise ValueError(f"a snapshot holds at most {max_bytes} bytes")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(kept, key=lambda n: n.split("/")):
            info, content = kept[name]
            if info.type != tarfile.FIFOTYPE:
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _inside(name: str) -> str:
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"a name that leads out of the tar: {name!r}")
    return "/".join(parts)


def _content_of(info: tarfile.TarInfo, tar: tarfile.TarFile, before: dict[str, tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Of a file, or of the one that a hard link leads to."""
    if info.islnk():
        return before[_inside(info.linkname)][1] if _inside(info.linkname) in before else b""
    source = tar.extractfile(info) if info.isreg() else None
    return source.read() if source is not None else b""


def _described(name: str, info: tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    mine = tarfile.TarInfo(name)
    mine.mode, mine.mtime, mine.size = stat.S_IMODE(info.mode), int(info.mtime), size
    if info.isdir():
        mine.type = tarfile.DIRTYPE
    elif info.issym():
        mine.type, mine.linkname = tarfile.SYMTYPE, info.linkname
    elif not (info.isreg() or info.islnk()):
        mine.type = tarfile.FIFOTYPE  # and whatever else stays behind
    return mine
