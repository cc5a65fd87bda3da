"""One name in an open directory of a box, and never what a link of that name leads to.

Everything here takes the descriptor of the directory that holds the name: whoever walks (`envfarm.backends.files`) knows
that it lies inside, whatever the agent renames meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from envfarm.box import MAX_DEPTH, Entry

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory is opened."""


def refused(path: str, why: str) -> PermissionError:
    return PermissionError(errno.EACCES, why, path)


def walk(fd: int, prefix: str = "") -> Iterator[tuple[Entry, int]]:
    """Every entry below an open directory, names sorted, with the descriptor of the directory that holds it.

    Raises: ValueError deeper than `MAX_DEPTH`: each level costs the worker a descriptor and a frame of its stack."""
    if prefix.count("/") > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} directories inside each other")
    for name in sorted(os.listdir(fd)):
        try:
            status = os.lstat(name, dir_fd=fd)
        except FileNotFoundError:
            continue
        mode = status.st_mode
        path = prefix + name
        if stat.S_ISDIR(mode):
            yield Entry(path=path, kind="directory", size=0, mode=stat.S_IMODE(mode)), fd
            try:
                below = os.open(name, DIRECTORY, dir_fd=fd)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                yield from walk(below, path + "/")
            finally:
                os.close(below)
        elif stat.S_ISREG(mode):
            yield Entry(path=path, kind="file", size=status.st_size, mode=stat.S_IMODE(mode)), fd
        elif stat.S_ISLNK(mode):
            target = link_target(name, fd) or ""
            yield Entry(path=path, kind="link", size=0, mode=0o777, target=target), fd
        else:
            yield Entry(path=path, kind="other", size=0, mode=stat.S_IMODE(mode)), fd


def link_target(name: str, parent: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def make_directory(name: str, parent: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return
    os.chmod(name, 0o755, dir_fd=parent)  # whatever the worker's umask


def read_regular(name: str, parent: int, path: str, max_bytes: int) -> bytes:
    """O_NONBLOCK: opening a fifo that nobody writes to must not hang."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise refused(path, "a link or special file") from None
        raise
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise refused(path, "not a regular file")
        chunks, left = [], max_bytes + 1
        while left and (chunk := os.read(fd, min(left, 1 << 20))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    if not left:
        raise ValueError(f"{path}: larger than {max_bytes} bytes")
    return b"".join(chunks)


def replace(name: str, parent: int, data: bytes, mode: int) -> None:
    """Unlink and create exclusively: nothing that the agent put there is written through. A failed write leaves no file."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.unlink(name, dir_fd=parent)
        raise
    finally:
        os.close(fd)
