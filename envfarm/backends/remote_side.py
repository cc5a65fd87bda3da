"""The second shell in a remote box: it ends what a command left behind, counts what it used, and moves files.

It never evaluates the agent's text, only requests of ours, one line each, and works by builtins wherever that is possible, as
in a box full of processes nothing can be forked. Its answer is `\\0<nonce> <status> <length> <words>\\n` and then `length` bytes;
with length -1 the bytes go on to `\\0<nonce>.`, which nobody in the box can spell while they flow: file requests come when no
process of the agent's is left. What else appears on its stream was forged by the agent and is dropped.

Process 1 cannot be killed from inside, this shell can: then a new one is opened (`remote_second`), at the cost of one exec.
`kill -9 -1` spares process 1 and whoever calls it, and the kernel does it in one stroke: no fork bomb is faster. Where the
supervisor is not process 1 (`docker_gvisor`) that ends the box as well.

Where the box has counters of its own (`/sys/fs/cgroup`, version 1 or 2) they are read; otherwise processes, their CPU seconds
and private memory are summed up.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from envfarm.backends.remote_streams import Pipe

ENTRY = ["/bin/sh", "-c", 'eval "$__f"']

SCRIPT = r"""
unset __b __f; exec 2>/dev/null; umask 022; cd /; IFS=' '; PATH=/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin; export PATH
NL='
'; V=0; [ -r /sys/fs/cgroup/memory/memory.oom_control ] && V=1; [ -r /sys/fs/cgroup/memory.events ] && V=2
P=1
reply() { printf '\0%s %s\n' "$r" "$*"; }

living() { # L: living processes beside 1, the supervisor P, this shell and $1; Z: dead ones that nobody has reaped yet
L= Z=
for d in /proc/[0-9]*; do
p=${d#/proc/}
case " 1 $P $$ $1 " in *" $p "*) continue;; esac
s=; while IFS= read -r l; do s=$l; done <"$d/stat"
s=${s##*) }
case $s in '') ;; Z*|X*) Z="$Z $p";; *) L="$L $p";; esac
done
}

clear() { # end every process beside 1, P, this shell and $1; T: a bomb outran the second try and took $1 with it, or later P
living "$1"; n=0; k=0; K=; T=; m=20; [ $P = 1 ] && m=2
while [ -n "$L" ]; do
kill -STOP $L; kill -KILL $L
for p in $L; do
case "$K " in *" $p "*) ;; *) n=$((n+1)); break;; esac
done
[ $n -gt $m ] && T=1 && kill -KILL -1
k=$((k+1)); [ $k -gt 20 ] && sleep 0.01
[ $k -gt 500 ] && break
K=$L; living "$1"
done
n=0
while [ -n "$Z" ] && [ $n -lt 40 ]; do n=$((n+1)); living "$1"; done
}

field() { F=0; while read -r k v; do [ "$k" = "$1" ] && F=$v && return; done <"/sys/fs/cgroup/$2"; }

count() { # M: killed for memory; F: forks refused; C: CPU microseconds; where nobody counts also A: private pages; N: processes
M=0 F=0 C=0 N=0 A=0
case $V in
1) field oom_kill memory/memory.oom_control; M=$F; read -r C </sys/fs/cgroup/cpuacct/cpuacct.usage; C=$((C/1000))
field max pids/pids.events;;
2) field oom_kill memory.events; M=$F; field usage_usec cpu.stat; C=$F; field max pids.events;;
*) for d in /proc/[0-9]*; do
[ "$d" = "/proc/$$" ] && continue
s=; while IFS= read -r l; do s=$l; done <"$d/stat"
set -- ${s##*) }
[ $# -gt 15 ] || continue
C=$((C+(${12}+${13}+${14}+${15})*10000)) N=$((N+1))
read -r k v l s <"$d/statm" && A=$((A+v-l))
done;;
esac
}

tell() { reply ok 0 $V $M $F $C $N $A $L; }
state() { count; tell; }
look() { # while a command runs, with the number of processes: a file more
living 0; count
case $V in 1) read -r N </sys/fs/cgroup/pids/pids.current;; 2) read -r N </sys/fs/cgroup/pids.current;; esac
tell
}
alone() { # is there nothing but 1, P, this shell and $1, and that no zombie, which has no `exe`? nearly always
S=$1 n=4; [ $P = 1 ] && n=3; set -- /proc/[0-9]*
[ $# = $n ] && [ -e "/proc/$S/exe" ] && L=$S
}
settle() { alone "$1" || { clear "$1"; living ${T:+"$1"} 0; }; state; }
end() { # from the agent's shell: nonce, exit code, itself, its directory
if alone "$3"; then count; e="C$Y$1" s="$2 $V $M $F $C $N $A $L;$4"; else e="E$1" s="$2;$4"; fi
printf '\0%s\0' "$e" >"/proc/$3/fd/5"; printf '\0%s %s\0' "$e" "$s" >"/proc/$3/fd/4"
}
"""

SERVE = 'while IFS= read -r q; do IFS=" "; eval "$q"; done\n'
"""The end of the script, after all functions."""


@dataclass(frozen=True)
class State:
    """What a box has used since it started."""

    counters: int  # version of the control groups seen inside, 0 for none
    memory_kills: int
    refused_forks: int
    cpu_s: float
    processes: int  # and threads, where they are counted: of a `look` alone
    private_bytes: int  # only without counters
    left: tuple[int, ...]  # processes that are still there

    @classmethod
    def of(cls, words: Sequence[bytes]) -> State:
        """Raises: ValueError."""
        version, memory, pids, cpu_us, processes, pages, *left = (int(w) for w in words)
        return cls(version, memory, pids, cpu_us / 1e6, processes, pages * 4096, tuple(left))


class SideLost(Exception):
    """The shell was killed, stopped or made to speak nonsense."""


class Refused(Exception):
    """The request was understood and could not be done; `args[0]` says why in one word."""


@dataclass(frozen=True)
class Answer:
    words: list[bytes]
    payload: bytes


class Side:
    """Asks one thing at a time."""

    def __init__(self, pipe: Pipe):
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._nonce = b""
        self._received = bytearray()
        self._head: tuple[bytes, int, list[bytes]] | None = None  # status, length, words
        self._answer: asyncio.Future[Answer] | None = None
        self.over = False  # its stream has ended
        self.pid, self.key = 0, secrets.token_hex(8)
        pipe.listen(self._feed, _ignore, self._ended)

    def close(self) -> None:
        self._pipe.close()
        self._ended()

    async def introduce(self, timeout_s: float) -> None:
        """Tell it the key, hear its number. Raises: SideLost."""
        answer = await self.ask(f"Y={self.key}; reply ok 0 $$", timeout_s=timeout_s)
        try:
            self.pid = int(answer.words[0])
        except (ValueError, IndexError):
            raise SideLost from None

    async def ask(self, text: str, data: bytes = b"", *, timeout_s: float) -> Answer:
        """Run one line of the script's functions, with `data` on its standard input. Raises: SideLost, Refused."""
        async with self._lock:
            nonce = secrets.token_hex(8)
            self._nonce, self._head, self._received = nonce.encode(), None, bytearray()
            self._answer = self._loop.create_future()
            if self.over:
                raise SideLost
            timer = self._loop.call_later(timeout_s, self._finish, SideLost())
            try:
                self._pipe.send(f"r={nonce}; {text}\n".encode("utf-8", "surrogateescape") + data)
                return await self._answer
            except asyncio.CancelledError:
                self.close()  # half an exchange is of no use to the next
                raise
            finally:
                timer.cancel()
                self._answer = None

    def _ended(self) -> None:
        self.over = True
        self._finish(SideLost())

    def _finish(self, result: Answer | Exception) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(result, Exception):
            self._answer.set_exception(result)
            self._answer.exception()  # seen: whoever asked may have been cancelled
        else:
            self._answer.set_result(result)

    def _feed(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            return
        self._received += data
        if self._head is None and not self._read_head():
            return
        assert self._head is not None
        status, length, words = self._head
        end = length if length >= 0 else self._received.find(b"\0" + self._nonce + b".")
        if end < 0 or len(self._received) < end:
            return
        if status == b"ok":
            self._finish(Answer(words, bytes(self._received[:end])))
        else:
            self._finish(Refused(status.decode("ascii", "replace")))

    def _read_head(self) -> bool:
        """Find where the answer begins; drop what was before."""
        begin = b"\0" + self._nonce + b" "
        at = self._received.find(begin)
        if at < 0:
            del self._received[: max(0, len(self._received) - len(begin))]
            return False
        end = self._received.find(b"\n", at)
        if end < 0:
            return False
        line = bytes(self._received[at + len(begin) : end])
        del self._received[: end + 1]
        try:
            status, length, *words = line.split()
            self._head = status, int(length), words
        except ValueError:
            self._finish(SideLost())
            return False
        return True


def _ignore(data: bytes) -> None:
    pass


def quote(text: str) -> str:
    """One word of a request: a line, whatever the text holds."""
    return "'" + text.replace("'", "'\\''").replace("\n", "'\"$NL\"'") + "'"
