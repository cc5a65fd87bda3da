"""The shell in a box: one real shell of the image, kept alive, spoken to over three descriptors.

    worker  ── socket (fd 0) ──>  supervisor, process 1 of the box: a shell that only starts the next line again
                                     └── the agent's shell: a fork of it that reads frames and `eval`s them
            <── pipe (fd 1) ───  standard output of commands, nothing else
            <── pipe (fd 2) ───  standard error of commands, nothing else

A frame is `nonce lines stdin-path\\n` and then that many lines of command text. The answer, on the socket, is
`nonce exit-code working-directory\\0`. Output is not framed at all: it is complete once the answer has come and every
process that the command left is gone, so no output can forge a boundary.

Why a fork: process 1 cannot be killed from inside its own namespace, so `kill -9 $$`, `exit` and `exec` take at most the
fork. The supervisor, which never saw the agent's functions or variables, says so (`X code\\0`) and makes another when the
worker answers `go`, which it does once nothing of the old shell is left.
While a command runs, the socket is closed in it and the shell's own copy is close-on-exec.

What is not promised: the agent owns its shell. It may redefine `read` or `printf` there and so break what *it* sees next;
it can never make the worker wait beyond the time limit, nor speak for a later command (the nonce is not its own).
The text is plain POSIX shell, for dash and busybox as for bash.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

BOOT = 'eval "$__b"'
"""What process 1 is started with; the rest is in its environment, so that `ps` in the box stays readable."""

SETUP = r"""umask 022; ulimit -c 0; ulimit -n 1024;
exec 3<&0 4>&1 5>&2 </dev/null >/dev/null 2>/dev/null;
__q() { return "$1"; };"""
"""Keeps the streams of process 1 as 3, 4 and 5; `__q` hands `$?` on to the next command, as a terminal would, without a fork."""

READ = r"""IFS=' ' read -r __n __k __i __p __m <&3 || exit;
__c=;
until case $__k in 0) ;; *) ! case . in *) ;; esac;; esac; do
IFS= read -r __l <&3 || exit;
__c=$__c$__l$__o;
__k=$((__k-1));
done;"""
"""One frame into `__c`, from descriptor 3. `__p` and `__m` are of `remote_loop`."""

EVAL = r"""__k=$__s __s=0;
if __q "$__k";
then eval "$__c" <"$__i" >&4 2>&5 3<&- 4>&- 5>&-;
else eval "$__c" <"$__i" >&4 2>&5 3<&- 4>&- 5>&-;
fi;
__s=$?;
$__d;"""

_LOOP = rf"""
unset __b;
{SETUP}
printf 'U 0\0' >&3;
__o=$1; shift; __n= __s=0 __d=;
if [ -n "$BASH_VERSION" ]; then __d='disown -a'; fi;
while :; do
(
while case . in *) ;; esac; do while case . in *) ;; esac; do
printf '%s %s %s\0' "$__n" "$__s" "$PWD" >&3;
{READ}
{EVAL}
done; done
);
printf 'X %s\0' "$?" >&3 || exit;
__l=;
until [ "$__l" = go ]; do IFS= read -r __l <&3 || exit; done;
done
"""
SUPERVISOR = _LOOP.replace("\n", " ")
"""Process 1 of every box, on one line, so that the line numbers in the shell's messages are those of the agent's command.

The two nested loops catch an agent's `break` and `continue`; their conditions are keywords, as `:` may be the agent's.
Jobs are forgotten and the shells' own standard error is nowhere: what they say about killed jobs is not the output of a command.
"""


def environment(enter: list[int]) -> dict[str, str]:
    """The variable that holds the supervisor. `enter`: descriptors of control groups that it joins, by itself, first.

    Only bash can name a descriptor above 9.
    """
    join = "".join(f"echo 0 >&{fd} && exec {fd}>&- || exit 125; " for fd in enter)
    return {"__b": join + SUPERVISOR}


def argv(shell: str) -> list[str]:
    """The command line of process 1. Its first argument is a newline, which one line of text cannot spell."""
    quiet = ["--norc", "--noprofile"] if shell.endswith("bash") else []
    return [shell, *quiet, "-c", BOOT, shell.rpartition("/")[2], "\n"]


GO = b"go\n"

AGAIN = '__q "$__k"'
"""A command that ends as the one before it did."""

DUMP = r"""
{ umask; if [ -n "${BASH_VERSION-}" ]; then declare -p; declare -f; alias -p; shopt -p; set +o
else set; alias | sed 's/^/alias /'; fi; printf 'cd -- %s\n' "'$(printf %s "$PWD" | sed "s/'/'\\\\''/g")'"; } 2>/dev/null
"""
"""Prints what a new shell can source. Without bash, functions are not printable and stay behind."""

_NOT_RESTORED = re.compile(
    rb"^(?:declare -\S*r\S* .*|(?:declare -\S+ )?(?:BASH\w*|EUID|UID|PPID|SHELLOPTS|DIRSTACK|FUNCNAME|GROUPS|IFS|_|__\w|"
    rb"LINENO|RANDOM|SRANDOM|SECONDS|EPOCH\w+|OPTIND|PS4|SHLVL|PIPESTATUS|HOSTNAME|HOSTTYPE|MACHTYPE|OSTYPE|COMP_\w+)"
    rb"(?:=.*)?)$\n?",
    re.MULTILINE,
)
"""Lines of a dump that are read-only, belong to the shell itself or to the loop."""


@dataclass(frozen=True)
class Answer:
    """A command ended and the shell waits for the next. An empty nonce: a new shell is ready."""

    nonce: bytes
    exit_code: int
    cwd: bytes


@dataclass(frozen=True)
class ShellEnded:
    """The agent's shell itself ended (`exit`, `exec`, a signal); the supervisor starts another."""

    exit_code: int


@dataclass(frozen=True)
class SupervisorUp:
    """Process 1 runs; the first shell is about to."""


def check(command: str) -> None:
    """Raises ValueError where the command holds what no shell can carry: a NUL, or half a surrogate pair (those that
    stand for undecodable bytes are bytes)."""
    if "\0" in command:
        raise ValueError("a shell command cannot hold a NUL character; write such bytes to a file with Box.write")
    command.encode("utf-8", "surrogateescape")


def encode(nonce: str, command: str, stdin_path: str = "/dev/null") -> bytes:
    """One frame."""
    check(command)
    text = command.encode("utf-8", "surrogateescape")
    return b"%s %d %s\n%s\n" % (nonce.encode(), text.count(b"\n") + 1, stdin_path.encode(), text)


def decode(frame: bytes) -> Answer | ShellEnded | SupervisorUp | None:
    """One answer without its NUL; None where it is not one (the agent may write what it likes there)."""
    words = frame.split(b" ", 2)
    code = words[1] if len(words) > 1 else b""
    if not (code.isdigit() and len(code) <= 3):
        return None
    if words[0] == b"X" and len(words) == 2:
        return ShellEnded(int(code))
    if words[0] == b"U" and len(words) == 2:
        return SupervisorUp()
    return Answer(words[0], int(code), words[2]) if len(words) == 3 else None


def go_to(cwd: bytes) -> str:
    """Shell text that enters the directory where the last shell was, silently staying where it is gone."""
    return f"cd -- {shlex.quote(cwd.decode('utf-8', 'surrogateescape'))} 2>/dev/null; __s=0; __q 0"


def restorable(dump: bytes) -> bytes:
    """A dump without what a new shell must not take over. The first line, the umask, becomes a command."""
    umask, _, rest = dump.partition(b"\n")
    return b"umask " + umask + b"\n" + _NOT_RESTORED.sub(b"", rest)
