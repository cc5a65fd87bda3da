"""Files of a box, read and written from outside without trusting anything inside.

The worker holds a descriptor of the box's workdir and walks from it one name at a time, never letting the kernel follow a
link: a link is read, its target is resolved in our own hands, and one that leaves the root is refused. The agent may swap
a directory for a link at any moment; every step is relative to a descriptor that is already known to be inside.

Why not `cat` and `tar` in the box: the agent may have replaced them, or be in the way. Why this works for an ordinary user
too: `/proc/PID/root` asks for the rights of a tracer, and who made a user namespace has them over everything in it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from envfarm.box import Entry

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40


def _refused(path: str, why: str) -> PermissionError:
    return PermissionError(errno.EACCES, why, path)


class Tree:
    """One directory of a box (`/task` or `/tmp`), held open. `close()` lets go of it."""

    def __init__(self, fd: int, mount: str):
        self.fd = fd
        self.mount = mount

    def close(self) -> None:
        os.close(self.fd)

    def names(self, path: str) -> list[str] | None:
        """`path` as names below this tree, or None where it lies elsewhere. Relative paths start here."""
        if not path.startswith("/"):
            path = f"{self.mount}/{path}"
        parts = [p for p in path.split("/") if p not in ("", ".")]
        root = [p for p in self.mount.split("/") if p]
        return parts[len(root) :] if parts[: len(root)] == root else None

    @contextmanager
    def _parent(self, path: str, *, create: bool = False, follow: bool = True) -> Iterator[tuple[int, str]]:
        """The directory that holds `path`, open, and the last name in it ("" for the tree itself).

        Links on the way are resolved, a link at the end only if `follow`; missing directories are made if `create`.
        """
        todo = self.names(path)
        if todo is None:
            raise _refused(path, f"outside {self.mount}")
        todo = list(reversed(todo))
        stack = [os.dup(self.fd)]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == "..":
                    if len(stack) == 1:
                        raise _refused(path, f"leaves {self.mount}")
                    os.close(stack.pop())
                    continue
                target = _link_target(name, stack[-1]) if todo or follow else None
                if target is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    if target.startswith("/"):
                        inside = self.names(target)
                        if inside is None:
                            raise _refused(path, f"a link leaves {self.mount} (to {target})")
                        while len(stack) > 1:
                            os.close(stack.pop())
                        todo.extend(reversed(inside))
                    else:
                        todo.extend(reversed([p for p in target.split("/") if p not in ("", ".")]))
                    continue
                if not todo:
                    yield stack[-1], name
                    return
                if create:
                    _make_directory(name, stack[-1])
                stack.append(os.open(name, _DIRECTORY, dir_fd=stack[-1]))
            yield stack[-1], ""
        finally:
            for fd in stack:
                os.close(fd)

    def read(self, path: str, max_bytes: int) -> bytes:
        """See `Box.read`."""
        with self._parent(path) as (parent, name):
            if not name:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            return _read_regular(name, parent, path, max_bytes)

    def write(self, path: str, data: bytes, mode: int) -> None:
        """See `Box.write`. An existing file or link is replaced, not written into."""
        with self._parent(path, create=True, follow=False) as (parent, name):
            if not name:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            _replace(name, parent, data, mode)

    def remove(self, name: str) -> None:
        """Unlink a name directly below the tree, where it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """`path` as an open directory. Raises FileNotFoundError, NotADirectoryError, PermissionError."""
        with self._parent(path) as (parent, name):
            fd = os.open(name, _DIRECTORY, dir_fd=parent) if name else os.dup(parent)
        try:
            yield fd
        finally:
            os.close(fd)

    def list(self, path: str, max_entries: int) -> list[Entry]:
        """See `Box.list`."""
        found: list[Entry] = []
        with self.directory(path) as fd:
            for entry, _ in walk(fd):
                found.append(entry)
                if len(found) > max_entries:
                    raise ValueError(f"{path}: more than {max_entries} entries")
        return sorted(found, key=lambda e: e.path)

    def archive(self, path: str, budget: int) -> dict[str, bytes]:
        """Regular files at or below `path`, by path relative to the tree. Links and special files are refused."""
        found: dict[str, bytes] = {}
        names = self.names(path)
        if names is None:
            raise _refused(path, f"outside {self.mount}")
        here = "/".join(names)
        try:
            for name, size, parent, leaf in self._artifacts(path, here):
                if size > budget:
                    raise ValueError(f"artifacts are larger than allowed: {self.mount}/{name}")
                found[name] = _read_regular(leaf, parent, name, budget)
                budget -= len(found[name])
        except FileNotFoundError:
            return {}
        return found

    def _artifacts(self, path: str, here: str) -> Iterator[tuple[str, int, int, str]]:
        fd = os.dup(self.fd)
        try:
            names = [n for n in here.split("/") if n]
            if ".." in names:
                raise _refused(path, "'..' in an artifact's path")
            for name in names:
                status = os.lstat(name, dir_fd=fd)
                if stat.S_ISREG(status.st_mode) and name == names[-1]:
                    yield here, status.st_size, fd, name
                    return
                if not stat.S_ISDIR(status.st_mode):
                    raise _refused(path, "a link or special file is no artifact")
                below = os.open(name, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            for entry, parent in walk(fd):
                full = f"{here}/{entry.path}" if here else entry.path
                if entry.kind in ("link", "other"):
                    raise _refused(f"{self.mount}/{full}", "a link or special file is no artifact")
                if entry.kind == "file":
                    yield full, entry.size, parent, entry.path.rpartition("/")[2]
        finally:
            os.close(fd)


def walk(fd: int, prefix: str = "") -> Iterator[tuple[Entry, int]]:
    """Every entry below an open directory, names sorted, with the descriptor of the directory that holds it."""
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
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                yield from walk(below, path + "/")
            finally:
                os.close(below)
        elif stat.S_ISREG(mode):
            yield Entry(path=path, kind="file", size=status.st_size, mode=stat.S_IMODE(mode)), fd
        elif stat.S_ISLNK(mode):
            target = _link_target(name, fd) or ""
            yield Entry(path=path, kind="link", size=0, mode=0o777, target=target), fd
        else:
            yield Entry(path=path, kind="other", size=0, mode=stat.S_IMODE(mode)), fd


def _link_target(name: str, parent: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def _make_directory(name: str, parent: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return
    os.chmod(name, 0o755, dir_fd=parent)  # whatever the worker's umask


def _read_regular(name: str, parent: int, path: str, max_bytes: int) -> bytes:
    """O_NONBLOCK: opening a fifo that nobody writes to must not hang."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _refused(path, "a link or special file") from None
        raise
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise _refused(path, "not a regular file")
        chunks, left = [], max_bytes + 1
        while left and (chunk := os.read(fd, min(left, 1 << 20))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    if not left:
        raise ValueError(f"{path}: larger than {max_bytes} bytes")
    return b"".join(chunks)


def _replace(name: str, parent: int, data: bytes, mode: int) -> None:
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
