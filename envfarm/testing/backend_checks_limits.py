"""Checks of the limits: each bites, is named, and leaves a usable box."""

from __future__ import annotations

from envfarm.box import Box, LimitKind
from envfarm.testing.backend_checks import SMALL, Bench, Check, expect, expect_result


async def _hits(box: Box, command: str, limit: LimitKind) -> str:
    result = await box.exec(command)
    expect(result.limit == limit, result, f"limit {limit!r} for {command!r}")
    expect_result(await box.exec("echo usable"), out=b"usable\n", err=b"")
    return f"{command!r} ended with exit code {result.exit_code}"


async def memory(bench: Bench) -> str:
    return await _hits(await bench.box(exec_cpu_s=10), "x=$(head -c 300000000 /dev/zero | tr '\\0' x); echo ${#x}", "memory")


async def processes(bench: Bench) -> str:
    box = await bench.box(exec_timeout_s=2, memory_bytes=512 << 20)  # gVisor counts a fork's shared pages
    return await _hits(box, "for i in $(seq 100); do sleep 100 & done; wait", "pids")


async def fork_bomb(bench: Bench) -> str:
    box = await bench.box(exec_timeout_s=2)
    result = await box.exec("b() { b | b & b; }; b")
    expect(result.limit in ("pids", "cpu"), result, "limit 'pids' or 'cpu'")
    expect_result(await box.exec("echo usable"), out=b"usable\n", err=b"")
    return f"ended by {result.limit}"


async def disk(bench: Bench) -> str:
    box = await bench.box()
    detail = await _hits(box, "head -c 20000000 /dev/zero >big", "disk")
    await box.exec("rm big")
    expect_result(await box.exec("head -c 5000000 /dev/zero >fits && wc -c <fits"), out=b"5000000\n")
    everywhere = "for d in /task /tmp /dev/shm /run /var /dev; do head -c 20000000 /dev/zero >$d/f; done"
    result = await box.exec(f"rm fits; {everywhere}; du -bc /task /tmp | tail -1 | cut -f1")
    expect(int(result.stdout) <= SMALL.disk_bytes + 65536, result.stdout, f"at most {SMALL.disk_bytes} bytes in all")
    return detail


async def output(bench: Bench) -> str:
    box = await bench.box()
    result = await box.exec("head -c 50000 /dev/zero | tr '\\0' o; head -c 100 /dev/zero | tr '\\0' e >&2")
    kept = b"o" * SMALL.output_bytes
    expect(result.limit == "output" and result.stdout == kept and result.stderr == b"e" * 100, result.limit, "a cut stdout")
    expect(result.exit_code == 0, result.exit_code, "the command's own exit code")
    return await _hits(box, "yes flood", "output")


async def cpu(bench: Bench) -> str:
    box = await bench.box(exec_cpu_s=0.3)
    await _hits(box, "while :; do :; done", "cpu")
    return await _hits(box, "for i in 1 2 3 4; do (while :; do :; done) & done; wait", "cpu")


async def idle(bench: Bench) -> str:
    box = await bench.box(exec_timeout_s=0.3)
    await box.exec("cd /tmp")
    await _hits(box, "trap '' TERM INT HUP; sleep 1000; sleep 1000", "idle")
    await _hits(box, "kill -STOP $(sh -c 'echo $PPID')", "idle")
    expect_result(await box.exec("pwd"), out=b"/tmp\n")
    return "also where TERM is ignored and where the shell is stopped"


CHECKS: dict[str, Check] = {
    "memory limit": memory,
    "pids limit": processes,
    "fork bomb": fork_bomb,
    "disk limit": disk,
    "output limit": output,
    "cpu limit": cpu,
    "idle limit": idle,
}
