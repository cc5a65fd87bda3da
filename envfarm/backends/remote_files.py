"""Files of a remote box, by the tools of its image - `find`, `tar`, `head`, `cat`, `wc` - which no agent can replace, as the
root is read-only and the side shell has a PATH of its own.

Requests come when no process of the agent's is left, so nothing moves while a path is walked: one name at a time, as in
`files`, links resolved by us and refused where they leave the tree. The shell that walks has no more rights than the agent, so
a mistake here could show the agent's own box to the worker and nothing else. What comes back is taken apart as hostile data.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import tarfile
from collections.abc import Awaitable, Callable
from typing import Protocol

from envfarm.backends import nodes
from envfarm.backends.remote_side import Answer, Refused, quote
from envfarm.box import MAX_ARTIFACTS, MAX_DEPTH, WORKDIR, Entry

SCRIPT = r"""
walk() { # D: the directory below $1 that holds $2; B: the name in it, empty for D itself. $3: follow a last link; $4: mkdir
m=$1 t=$2 D= B= k=0
while :; do
while :; do case $t in /*) t=${t#/};; *) break;; esac; done
[ -z "$t" ] && { D=$m$D; return 0; }
b=${t%%/*}; t=${t#"$b"}; t=${t#/}
case $b in
.) continue;;
..) [ -z "$D" ] && { E=leaves; return 1; }; D=${D%/*}; continue;;
esac
p=$m$D/$b
if [ -L "$p" ] && { [ -n "$t" ] || [ "$3" = 1 ]; }; then
k=$((k+1)); [ $k -gt 40 ] && { E=loop; return 1; }
g=$(readlink "$p"; echo .); g=${g%??}
case $g in "$m"|"$m"/*) t=${g#"$m"}/$t; D=;; /*) E=leaves; return 1;; *) t=$g/$t;; esac
t=${t%/}; continue
fi
[ -z "$t" ] && { D=$m$D B=$b; return 0; }
[ "$4" = 1 ] && [ ! -e "$p" ] && { mkdir "$p" || { E=full; [ -w "$m$D" ] || E=denied; return 1; }; }
[ -e "$p" ] || { E=missing; return 1; }
[ -d "$p" ] || { E=nodir; return 1; }
D=$D/$b
done
}

get() { # mount, path, most bytes
walk "$1" "$2" 1 0 || { reply $E 0; return; }
p=$D/$B
if [ -z "$B" ] || [ -d "$p" ]; then reply isdir 0
elif [ ! -e "$p" ]; then reply missing 0
elif [ ! -f "$p" ]; then reply special 0
elif [ ! -r "$p" ]; then reply denied 0
else n=$(wc -c <"$p"); if [ "$n" -gt "$3" ]; then reply large 0; else reply ok "$n"; [ "$n" = 0 ] || head -c "$n" "$p"; fi
fi
}

put() { # mount, path, bytes, mode; the bytes follow on standard input and are always taken off it
E=; walk "$1" "$2" 0 1
p=$D/$B
if [ -n "$E" ]; then :
elif [ -z "$B" ] || { [ -d "$p" ] && [ ! -L "$p" ]; }; then E=isdir
elif [ ! -w "$D" ]; then E=denied
fi
[ -n "$E" ] && { head -c "$3" >/dev/null; reply $E 0; return; }
{ [ -e "$p" ] || [ -L "$p" ]; } && rm -f "$p"
if head -c "$3" | { cat >"$p" || { cat >/dev/null; false; }; } && { [ "$4" = 644 ] || chmod "$4" "$p"; }; then reply ok 0
else rm -f "$p"; reply full 0; fi
}

drop() { rm -f "$1/$2"; reply ok 0; }

stream() { printf '\0%s ok -1\n' "$r"; "$@"; printf '\0%s.' "$r"; }
entries() { find "$1" $3 -printf '%y\0%s\0%m\0%P\0%l\0' | head -c "$2"; }
pack() { tar -C "$1" -cf - -- "$2" | head -c "$3"; }

tree() { # mount, path, most bytes of listing
walk "$1" "$2" 1 0 || { reply $E 0; return; }
p=$D${B:+/$B}
if [ -d "$p" ]; then stream entries "$p" "$3" '-mindepth 1'; elif [ -e "$p" ]; then reply nodir 0; else reply missing 0; fi
}

plain() { # mount, path, most bytes of listing; as `tree`, of a path without any link, or of one file
p=$1 t=$2
while [ -n "$t" ]; do
b=${t%%/*}; t=${t#"$b"}; t=${t#/}; p=$p/$b
[ -L "$p" ] && { reply special 0; return; }
[ -e "$p" ] || { reply missing 0; return; }
[ -d "$p" ] || [ -z "$t" ] || { reply special 0; return; }
done
[ -d "$p" ] || [ -f "$p" ] || { reply special 0; return; }
stream entries "$p" "$3"
}

unpack() { if head -c "$2" | { tar -xpf - -C "$1" || { cat >/dev/null; false; }; }; then reply ok 0; else reply full 0; fi; }
"""

_ENTRY_BYTES = 4096 + 255 + 64  # a path, a link's target of usual length, and the rest
_SHORT_S, _LONG_S = 30.0, 120.0
_KINDS = {b"f": "file", b"d": "directory", b"l": "link"}


class Ask(Protocol):
    def __call__(self, text: str, data: bytes = b"", *, timeout_s: float) -> Awaitable[Answer]:
        """As `Side.ask`, to whichever side shell is there. Raises: Refused, BoxDied."""
        ...


class RemoteFiles:
    """`Box`'s file methods. Raises what they raise."""

    def __init__(self, ask: Ask, writable: tuple[str, ...] = ()):
        """`writable` as in `BoxSpec`."""
        self._ask = ask
        self._mounts = (WORKDIR, "/tmp", *writable)

    async def _call(self, path: str, text: str, data: bytes = b"", timeout_s: float = _SHORT_S) -> Answer:
        try:
            return await self._ask(text, data, timeout_s=timeout_s)
        except Refused as refused:
            raise _error(refused.args[0], path) from None

    async def read(self, path: str, max_bytes: int) -> bytes:
        mount, rest = place(path, self._mounts)
        return (await self._call(path, f"get {mount} {quote(rest)} {max_bytes}")).payload

    async def write(self, path: str, data: bytes, mode: int) -> None:
        mount, rest = place(path, self._mounts)
        await self.put(mount, rest, data, mode)

    async def put(self, mount: str, rest: str, data: bytes, mode: int) -> None:
        await self._call(f"{mount}/{rest}", f"put {mount} {quote(rest)} {len(data)} {mode:o}", data, _LONG_S)

    async def remove(self, mount: str, name: str) -> None:
        await self._call(name, f"drop {mount} {quote(name)}")

    async def list(self, path: str, max_entries: int) -> builtins.list[Entry]:
        mount, rest = place(path, self._mounts)
        most = (max_entries + 1) * _ENTRY_BYTES
        found = _entries((await self._call(path, f"tree {mount} {quote(rest)} {most}")).payload)
        if len(found) > max_entries:
            raise ValueError(f"{path}: more than {max_entries} entries")
        return sorted(found, key=lambda e: e.path)

    async def archive(self, path: str, budget: int) -> dict[str, bytes]:
        """Regular files at or below `path`, by path relative to the workdir."""
        mount, rest = place(path, (WORKDIR,))
        names = [n for n in rest.split("/") if n not in ("", ".")]
        if ".." in names:
            raise nodes.refused(path, "'..' in an artifact's path")
        here = "/".join(names)
        try:
            answer = await self._ask(f"plain {mount} {quote(here)} {100_000 * _ENTRY_BYTES}", timeout_s=_SHORT_S)
        except Refused as refused:
            if refused.args[0] == "missing":
                return {}
            raise nodes.refused(path, "a link or special file is no artifact") from None
        wanted, left = dict[str, int](), budget
        for entry in sorted(_entries(answer.payload), key=lambda e: e.path):
            full = "/".join(p for p in (here, entry.path) if p)
            if entry.kind in ("link", "other"):
                raise nodes.refused(f"{mount}/{full}", "a link or special file is no artifact")
            if entry.kind == "file":
                wanted[full] = entry.size
                left -= entry.size
                if left < 0:
                    raise ValueError(f"artifacts are larger than allowed: {mount}/{full}")
                if len(wanted) > MAX_ARTIFACTS:
                    raise ValueError(f"{path}: more than {MAX_ARTIFACTS} artifacts")
        if not wanted:
            return {}
        data = await self.tar(WORKDIR, here or ".", budget + 2048 * (len(wanted) + 64))
        found = {name: content for name, content in regular_files(data).items() if name in wanted}
        if len(found) < len(wanted):
            missing = sorted(wanted.keys() - found.keys())[0]
            raise PermissionError(errno.EACCES, "the agent's own rights do not allow it to be read", f"{mount}/{missing}")
        return found

    async def tar(self, mount: str, path: str, max_bytes: int) -> bytes:
        """What lies at `path` below that directory, packed by the box's tar: to be read as hostile data."""
        return (await self._call(path, f"stream pack {mount} {quote(path)} {max_bytes}", timeout_s=_LONG_S)).payload

    async def untar(self, mount: str, data: bytes) -> None:
        await self._call(mount, f"unpack {mount} {len(data)}", data, _LONG_S)


def place(path: str, only: tuple[str, ...]) -> tuple[str, str]:
    """A path as mount and the rest. Raises: PermissionError where it lies in none, ValueError for a NUL."""
    if "\0" in path:
        raise ValueError("embedded null byte")
    if not path.startswith("/"):
        return WORKDIR, path
    parts = [p for p in path.split("/") if p not in ("", ".")]
    for mount in only:
        if parts[:1] == [mount.strip("/")]:
            return mount, "/".join(parts[1:])
    raise nodes.refused(path, f"outside {only[0]}")


def _error(word: str, path: str) -> Exception:
    numbers = {"missing": errno.ENOENT, "isdir": errno.EISDIR, "nodir": errno.ENOTDIR, "loop": errno.ELOOP, "full": errno.ENOSPC}
    if word in numbers:
        return OSError(numbers[word], os.strerror(numbers[word]), path)
    if word == "large":
        return ValueError(f"{path}: larger than allowed")
    words = {"leaves": "a link or '..' leaves the tree", "special": "a link or special file"}
    return PermissionError(errno.EACCES, words.get(word, os.strerror(errno.EACCES)), path)


def _entries(listing: bytes) -> builtins.list[Entry]:
    """What `find` printed; a last entry that was cut off does not count. Raises: ValueError deeper than `MAX_DEPTH`."""
    fields = listing.split(b"\0")[:-1]
    if any(path.count(b"/") > MAX_DEPTH for path in fields[3::5]):
        raise ValueError(f"more than {MAX_DEPTH} directories inside each other")
    text: Callable[[bytes], str] = os.fsdecode
    return [
        Entry(
            path=text(path),
            kind=_KINDS.get(kind, "other"),  # type: ignore[arg-type]
            size=int(size) if kind == b"f" else 0,
            mode=0o777 if kind == b"l" else int(mode, 8),
            target=text(target),
        )
        for kind, size, mode, path, target in zip(*[iter(fields)] * 5, strict=False)
    ]


def regular_files(data: bytes) -> dict[str, bytes]:
    """Content by name; hard links are copies of what they lead to. Raises: ValueError where it is no tar."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                name = info.name.removeprefix("./")
                if info.isreg():
                    source = tar.extractfile(info)
                    assert source is not None
                    found[name] = source.read()
                elif info.islnk() and info.linkname.removeprefix("./") in found:
                    found[name] = found[info.linkname.removeprefix("./")]
    except (tarfile.TarError, OverflowError) as error:
        raise ValueError(f"the box's tar cannot be read: {error}") from None
    return found
