"""Checks of isolation: nothing of the worker, of the host or of envfarm is to be found, and nothing leads out.

The worker plants a marker where an agent might look (its environment, a file, a listening TCP port, an abstract Unix
socket, an open descriptor, its own process) and the box is searched for it.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile

from envfarm.testing.backend_checks import Bench, Check, expect, expect_result


async def nothing_of_ours(bench: Bench) -> str:
    """Names of files, environments, command lines, mounts and open files: neither envfarm nor the planted marker."""
    marker = f"marker{secrets.token_hex(8)}"
    os.environ["ENVFARM_MARKER"] = marker
    try:
        with tempfile.NamedTemporaryFile(prefix=marker) as file:
            file.write(marker.encode())
            file.flush()
            os.set_inheritable(file.fileno(), True)
            box = await bench.box(exec_cpu_s=20, exec_timeout_s=60, output_bytes=1 << 20)
            listed = " ".join(f"/proc/[0-9]*/{f}" for f in ("environ", "cmdline", "mountinfo", "maps", "cgroup"))
            looked = await box.exec(
                f"cat {listed} /proc/net/unix /etc/* /tmp/* /run/* 2>/dev/null; "
                "ls -lR /proc/[0-9]*/fd /task /tmp /run /etc 2>/dev/null; env; set; "
                "find / -path /proc -prune -o -iname '*env[f]arm*' -print -o -name 'marker[0-9a-f]*' -print 2>/dev/null"
            )
    finally:
        del os.environ["ENVFARM_MARKER"]
    text = looked.text.lower()
    for word in (marker, "envfarm"):
        at = text.find(word)
        expect(at < 0, text[max(0, at - 80) : at + 80], f"no {word!r} anywhere in the box")
    return f"{len(looked.text)} characters searched"


async def descriptors(bench: Bench) -> str:
    """Commands hold their three streams and nothing else; the shell's own lead to pipes, its socket and /dev/null."""
    box = await bench.box()
    result = expect_result(await box.exec("ls -l /proc/self/fd | grep -c -- '->'"))
    expect(result.stdout.strip() == b"4", result.stdout, "0, 1, 2 and ls's own directory")
    allowed = r"pipe:|socket:|/dev/null"
    shells = "ls -l /proc/1/fd; sh -c 'ls -l /proc/$PPID/fd'"
    expect_result(await box.exec(f"{{ {shells}; }} | grep -- '->' | grep -vE '{allowed}'"), code=1, out=b"")
    return "three streams"


async def network(bench: Bench) -> str:
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        name = secrets.token_hex(8)
        abstract.bind(f"\0{name}")
        abstract.listen()
        box = await bench.box(exec_timeout_s=3)
        port = listener.getsockname()[1]
        for address in (f"127.0.0.1/{port}", "169.254.169.254/80", "1.1.1.1/53"):
            result = await box.exec(f"bash -c 'exec 9<>/dev/tcp/{address}'")
            expect(result.exit_code != 0, result, f"no way to {address}")
        result = await box.exec(f"grep -c {name} /proc/net/unix; cat /proc/net/dev")
        expect(result.stdout.startswith(b"0\n"), result, "no abstract socket of the host")
        expect(result.stdout.count(b":") <= 1, result.stdout, "no interface but loopback")
    return "loopback of its own at most, no addresses, no abstract sockets"


async def processes(bench: Bench) -> str:
    box = await bench.box()
    result = expect_result(await box.exec("cat /proc/[0-9]*/comm | sort -u | tr '\\n' ' '"))
    seen = set(result.stdout.decode().split())
    expect(seen <= {"bash", "sh", "cat", "sort", "tr", "dash"}, seen, "shells and the command itself")
    return "no process of the host"


async def privileges(bench: Bench) -> str:
    box = await bench.box()
    # what a leaky box could really do is only opened, never changed
    status = (await box.exec("cat /proc/self/status")).text
    for line in ("CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
        expect(line in status, status, line)
    for command in (
        "unshare -U true",
        "unshare -m true",
        "mount -t tmpfs none /tmp",
        "chroot / true",
        "nsenter -t 1 -m true",
        "hostname other",
        'date -s "$(date)"',
        ": >>/proc/sysrq-trigger",
        ": >>/proc/sys/kernel/core_pattern",
        "echo -1000 >/proc/self/oom_score_adj",
        "touch /usr/x",
        "touch /etc/x",
        "touch /dev/x",
        "touch /x",
        "mknod /tmp/n b 8 0",
        "cat /dev/kmsg",
    ):
        result = await box.exec(f"{{ {command}; }} 2>/dev/null")
        expect(result.exit_code != 0, result, f"{command!r} refused")
    return "no capability, no namespace, nothing writable but its own"


CHECKS: dict[str, Check] = {
    "nothing of ours": nothing_of_ours,
    "descriptors": descriptors,
    "network": network,
    "processes": processes,
    "privileges": privileges,
}
