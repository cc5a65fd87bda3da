"""The shell in a box that is reached over a byte stream: `shell_loop`'s, with its answers between the output.

    worker ── stdin  ──>  supervisor, process 1: a shell that only starts the next line again
                             └── the agent's shell: a fork of it that reads frames and `eval`s them
           <── stdout ──  a command's standard output, between the marks of its beginning and its end
           <── stderr ──  the same for standard error

A container or pod gives a worker nothing but standard streams, so there is no socket of its own for the answers. What each
stream carries between `S` and an end is the command's output; a command is over when both have shown an end, and whatever comes
outside (from a background process that is about to be killed) is dropped. Both streams are in order by themselves; nothing is
promised across them. Marks are printed by builtins and cost no fork:

    \\0S<nonce>\\n                                  the command begins; only where its nonce ends in `s`
    \\0E<nonce> <code>;<directory>\\0              it ended; also: a new shell is ready
    \\0C<key><nonce> <code> <state>;<directory>\\0  it ended, and left nothing, says the second shell (`remote_side`)
    \\0X<secret> <code>\\0                         the agent's shell itself ended, says process 1

(on stderr the latter three without what is after the name). A frame that names the second shell asks for `C`: the agent's shell
writes `end ...` to that one's standard input, which looks whether anybody is left, counts, and says so. Then the worker need not
ask, and as there was nobody who could write, the next beginning needs no mark. Otherwise `E` is said, by the second shell, or by
the agent's own (where the other is gone, the directory's name is not plain, the runtime lets nobody open those streams); then the
worker has the second shell clear up, and count.

The nonce is a new one for every command. An agent can read it (`$__n`) and so end its own command early, never a later one. The
secret is known to process 1 and the worker alone, the key to the second shell and the worker. A new shell is asked for by the
line that also starts the first one, `secret nonce\\n`.

Both scripts travel in the environment of process 1, so that no file of ours is in the image and `ps` in the box stays readable.
The text is plain POSIX shell, for dash and busybox as for bash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from envfarm.backends.shell_loop import EVAL, READ, SETUP

_LOOP = rf"""
unset __b __f;
{SETUP}
__o=$1; shift; __s=0 __d=;
if [ -n "$BASH_VERSION" ]; then __d='disown -a'; export -n HOSTNAME; else unset HOSTNAME; fi;
__p= __m= __w=/proc; [ -w /proc/self/fd/4 ] && [ -w /proc/self/fd/5 ] || __w=;
IFS=' ' read -r __x __n <&3 || exit;
while :; do
(
unset __x; echo 1000 >/proc/self/oom_score_adj; LIMITS
while case . in *) ;; esac; do while case . in *) ;; esac; do
case $PWD in *[!0-9A-Za-z_./-]*) __p=;; esac;
if ! {{ [ -e "$__w/$__p/exe" ] && printf 'end %s %s %s %s\n' "$__n" "$__s" "$__m" "$PWD" >"/proc/$__p/fd/0"; }};
then printf '\0E%s\0' "$__n" >&5; printf '\0E%s %s;%s\0' "$__n" "$__s" "$PWD" >&4; fi;
{READ}
case $__n in *s) printf '\0S%s\n' "$__n" >&4; printf '\0S%s\n' "$__n" >&5;; esac;
{EVAL}
done; done
);
__s=$?; printf '\0X%s\0' "$__x" >&5; printf '\0X%s %s\0' "$__x" "$__s" >&4; __s=0;
__l=;
until [ "$__l" = "$__x" ]; do IFS=' ' read -r __l __n <&3 || exit; done;
done
"""

ENTRY = """for s in /bin/bash /usr/bin/bash; do
[ -x $s ] && export SHELL=$s && exec $s --norc --noprofile -c 'eval "$__b"' bash "$0"; done
[ -x /bin/sh ] && export SHELL=/bin/sh && exec /bin/sh -c 'eval "$__b"' sh "$0"
"""

WHO = """IFS=' ' read -r __p __l </proc/self/stat; printf '%s %s' "$$" "$__p"; unset __p"""
"""The first command in a box: prints the number of the supervisor and its own, as the box has them."""

MARK_BYTES = 8192
"""A mark is at most this long: a directory's path is at most 4096."""

_MARK = re.compile(
    rb"\0(?:(?P<S>S)|(?P<kind>[ECX]))(?P<name>[0-9a-f]+s?)"
    rb"(?(S)\n|(?: (?P<code>\d{1,3})(?P<state>(?: +\d{1,18}){6,99})?(?:;(?P<cwd>[^\0]{0,%d}))?)?\0)" % MARK_BYTES
)
"""Of whatever command; compiled once, which costs more than a command does."""


def entry() -> list[str]:
    """The command line of process 1: bash where the image has it, else sh, as in `rootfs`."""
    return ["/bin/sh", "-c", ENTRY, "\n"]


def environment(address_space_bytes: int | None = None) -> dict[str, str]:
    """What process 1 and, through the container, every process beside it is started with. `address_space_bytes`: limit of
    each process of the agent's, for boxes whose memory nobody counts."""
    limits = f"ulimit -v {address_space_bytes >> 10};" if address_space_bytes else ""
    return {"__b": _LOOP.replace("LIMITS", limits).replace("\n", " ")}


def handshake(secret: str, nonce: str) -> bytes:
    """Starts the agent's shell, the first one or another. It answers with the end mark of `nonce`."""
    return f"{secret} {nonce}\n".encode()


@dataclass(frozen=True)
class Clearer:
    """Whom the agent's shell tells that a command ended, and the name under which that one says what is left of it."""

    pid: int
    key: str
    shell: int

    def frame(self) -> str:
        """What a frame says of it, after the path of standard input."""
        return f" {self.pid} {self.shell}"


@dataclass(frozen=True)
class Ended:
    """What the end of a command said; standard error says no more than that it ended, and by whom."""

    shell_too: bool = False
    cleared: bool = False
    exit_code: int = 0
    state: tuple[bytes, ...] = ()
    cwd: bytes | None = None


class Channel:
    """One of the two output streams, taken apart. Keeps the first `keep` bytes of each command; reads and drops the rest."""

    def __init__(self, keep: int, secret: str):
        self.seen = 0  # bytes of the command's output so far
        self.ended: Ended | None = None
        self._keep = keep
        self._secret = secret.encode()
        self._kept = bytearray()
        self._pending = b""
        self._inside = False
        self.expect(secret)

    def expect(self, nonce: str, *, marked: bool = True, key: str = "") -> None:
        """From now on, what matters is the command of this nonce. Where that is not marked, it begins with the next byte.
        `key`: of the second shell that may say its end."""
        name = nonce.encode()
        self._marks = {b"S" + name, b"E" + name, b"X" + self._secret}
        if key:
            self._marks.add(b"C" + key.encode() + name)
        self._inside, self.seen, self._kept = not marked, 0, bytearray()
        if self.ended is None or not self.ended.shell_too:
            self.ended = None

    def expect_also(self, nonce: str) -> None:
        """The end of that one is this command's, too."""
        self._marks.add(b"E" + nonce.encode())

    def renewed(self) -> None:
        """Another shell was asked for."""
        self.ended = None

    def take(self) -> tuple[bytes, bool]:
        """What was kept, and whether something was dropped."""
        return bytes(self._kept), self.seen > self._keep

    def feed(self, data: bytes) -> None:
        """What came. Forged marks, of whatever length, are output like any other."""
        self._pending += data
        begin = 0
        while found := _MARK.search(self._pending, begin):
            kind = found["S"] or found["kind"]
            if kind + found["name"] not in self._marks:
                begin = found.start() + 1
                continue
            self._output(self._pending[: found.start()])
            self._pending, begin = self._pending[found.end() :], 0
            self._meet(kind, found)
        at = self._pending.rfind(b"\0")
        hold = len(self._pending) if at < 0 or not self._may_be_a_mark(self._pending[at:]) else at
        self._output(self._pending[:hold])
        self._pending = self._pending[hold:]

    def _may_be_a_mark(self, tail: bytes) -> bool:
        if len(tail) > MARK_BYTES:
            return False
        return any(mark.startswith(tail[1:]) or tail[1:].startswith(mark) for mark in self._marks)

    def _meet(self, kind: bytes, found: re.Match[bytes]) -> None:
        if kind == b"S":
            self._output(found[0])  # inside of a command it is one that the agent made
            self._inside = self.ended is None
            return
        self._inside = False
        code = int(found["code"] or 0)
        if kind == b"X":
            self.ended = Ended(shell_too=True, exit_code=code)
        elif self.ended is None:
            state = tuple((found["state"] or b"").split())
            self.ended = Ended(cleared=kind == b"C", exit_code=code, state=state, cwd=found["cwd"])

    def _output(self, data: bytes) -> None:
        if not self._inside:
            return
        if self.seen < self._keep:
            self._kept += data[: self._keep - self.seen]
        self.seen += len(data)
