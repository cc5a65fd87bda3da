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

from envfarm.backends import nodes
from envfarm.box import MAX_ARTIFACTS, Entry

_MAX_LINKS = 40


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
            raise nodes.refused(path, f"outside {self.mount}")
        todo = list(reversed(todo))
        stack = [os.dup(self.fd)]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == "..":
                    if len(stack) == 1:
                        raise nodes.refused(path, f"leaves {self.mount}")
                    os.close(stack.pop())
                    continue
                target = nodes.link_target(name, stack[-1]) if todo or follow else None
                if target is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    if target.startswith("/"):
                        inside = self.names(target)
                        if inside is None:
                            raise nodes.refused(path, f"a link leaves {self.mount} (to {target})")
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
                    nodes.make_directory(name, stack[-1])
                stack.append(os.open(name, nodes.DIRECTORY, dir_fd=stack[-1]))
            yield stack[-1], ""
        finally:
            for fd in stack:
                os.close(fd)

    def read(self, path: str, max_bytes: int) -> bytes:
        """See `Box.read`."""
        with self._parent(path) as (parent, name):
            if not name:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            return nodes.read_regular(name, parent, path, max_bytes)

    def write(self, path: str, data: bytes, mode: int) -> None:
        """See `Box.write`. An existing file or link is replaced, not written into."""
        with self._parent(path, create=True, follow=False) as (parent, name):
            if not name:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            nodes.replace(name, parent, data, mode)

    def remove(self, name: str) -> None:
        """Unlink a name directly below the tree, where it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """`path` as an open directory. Raises FileNotFoundError, NotADirectoryError, PermissionError."""
        with self._parent(path) as (parent, name):
            fd = os.open(name, nodes.DIRECTORY, dir_fd=parent) if name else os.dup(parent)
        try:
            yield fd
        finally:
            os.close(fd)

    def list(self, path: str, max_entries: int) -> list[Entry]:
        """See `Box.list`."""
        found: list[Entry] = []
        with self.directory(path) as fd:
            for entry, _ in nodes.walk(fd):
                found.append(entry)
                if len(found) > max_entries:
                    raise ValueError(f"{path}: more than {max_entries} entries")
        return sorted(found, key=lambda e: e.path)

    def archive(self, path: str, budget: int) -> dict[str, bytes]:
        """Regular files at or below `path`, by path relative to the tree. Links and special files are refused."""
        found: dict[str, bytes] = {}
        names = self.names(path)
        if names is None:
            raise nodes.refused(path, f"outside {self.mount}")
        here = "/".join(names)
        try:
            for name, size, parent, leaf in self._artifacts(path, here):
                if size > budget:
                    raise ValueError(f"artifacts are larger than allowed: {self.mount}/{name}")
                if len(found) == MAX_ARTIFACTS:
                    raise ValueError(f"{path}: more than {MAX_ARTIFACTS} artifacts")
                found[name] = nodes.read_regular(leaf, parent, name, budget)
                budget -= len(found[name])
        except FileNotFoundError:
            return {}
        return found

    def _artifacts(self, path: str, here: str) -> Iterator[tuple[str, int, int, str]]:
        fd = os.dup(self.fd)
        try:
            names = [n for n in here.split("/") if n]
            if ".." in names:
                raise nodes.refused(path, "'..' in an artifact's path")
            for name in names:
                status = os.lstat(name, dir_fd=fd)
                if stat.S_ISREG(status.st_mode) and name == names[-1]:
                    yield here, status.st_size, fd, name
                    return
                if not stat.S_ISDIR(status.st_mode):
                    raise nodes.refused(path, "a link or special file is no artifact")
                below = os.open(name, nodes.DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            for entry, parent in nodes.walk(fd):
                full = f"{here}/{entry.path}" if here else entry.path
                if entry.kind in ("link", "other"):
                    raise nodes.refused(f"{self.mount}/{full}", "a link or special file is no artifact")
                if entry.kind == "file":
                    yield full, entry.size, parent, entry.path.rpartition("/")[2]
        finally:
            os.close(fd)
