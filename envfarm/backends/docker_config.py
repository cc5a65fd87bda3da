"""What a container of a box is allowed to do, as the engine's API takes it, and in words."""

from __future__ import annotations

import json
from typing import Any

from envfarm.backends import remote_loop, rootfs, seccomp
from envfarm.backends.limits import OURS
from envfarm.backends.owners import BOX
from envfarm.backends.remote_box import variables
from envfarm.backends.remote_shell import TICK_S
from envfarm.box import NOT_ENFORCED, WORKDIR, BoxSpec

RUNSC = "runsc"
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"  # as `rootfs` has it for unpacked images
_MINE = f"uid={rootfs.UID},gid={rootfs.GID}"
_MOUNT = "rw,exec,nosuid,nodev"


def configuration(spec: BoxSpec, runtime: str | None, labels: dict[str, str]) -> dict[str, Any]:
    """Arguments of docker-py's `create_container`. `labels` as in `owners`; the box's name is the container's."""
    address_space = spec.memory_bytes if runtime == RUNSC else None
    return {
        "name": labels[BOX],
        "image": spec.image,
        "entrypoint": remote_loop.entry(),
        "command": [],
        "user": f"{rootfs.UID}:{rootfs.GID}",
        "hostname": rootfs.HOSTNAME,
        "working_dir": WORKDIR,
        "environment": {**rootfs.PINNED_ENV, "PATH": _PATH, **variables(address_space)},
        "stdin_open": True,
        "labels": labels,
        "host_config": host_config(spec, runtime),
    }


def host_config(spec: BoxSpec, runtime: str | None) -> dict[str, Any]:
    """`HostConfig` of the engine's API. Output goes to whoever is attached and to no log."""
    filtered = [] if runtime == RUNSC else [f"seccomp={seccomp_profile()}"]
    config = {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", *filtered],
        "ReadonlyRootfs": True,
        "NetworkMode": "none",
        "IpcMode": "private",
        "Memory": spec.memory_bytes,
        "MemorySwap": spec.memory_bytes,
        "PidsLimit": spec.pids + OURS,
        "NanoCpus": int(spec.cpu * 1e9),
        "ShmSize": rootfs.SHM_BYTES,
        "Tmpfs": {
            place: f"{_MOUNT},size={size},mode={rootfs.mode(place)},{_MINE}"
            for place, size in {**rootfs.sizes(spec), rootfs.STDIN_DIR: rootfs.STDIN_BYTES}.items()
        },
        "LogConfig": {"Type": "none"},
    }
    return {**config, "Runtime": runtime} if runtime else config


def seccomp_profile() -> str:
    """The filter of `seccomp` as the engine wants it, so that a box refuses the same calls on every backend."""
    refuse = {"action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    rules: list[dict[str, Any]] = [
        {"names": list(seccomp.DENIED), **refuse},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]
    for bit in range(32):
        if seccomp.NEW_NAMESPACES >> bit & 1:
            flag = 1 << bit
            mask = {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
            rules.append({"names": ["clone"], "args": [mask], **refuse})
    for request in seccomp.TERMINAL_REQUESTS:
        mask = {"index": 1, "value": 0xFFFFFFFF, "valueTwo": request, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["ioctl"], "args": [mask], **refuse})
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def enforcement(runtime: str | None, cgroup_version: str | None) -> dict[str, str]:
    """See `Backend.enforcement`."""
    counted = f"cgroup v{cgroup_version} of the engine" if cgroup_version else "control groups of the engine"
    tracing = f"{NOT_ENFORCED}: an agent may write into the memory of its box's shells by /proc, and harms its own box alone"
    everywhere = {"disk": "tmpfs size", "output": "bytes kept per stream", "idle": "wall clock", "tracing": tracing}
    if runtime != RUNSC:
        cpu = f"{counted}: the rate; seconds looked at every {TICK_S} s"
        network = "network namespace: loopback alone"
        return {"memory": counted, "pids": counted, "cpu": cpu, **everywhere, "network": network, "syscalls": "seccomp"}
    watched = f"looked at every {TICK_S} s from inside: runsc enforces no control groups"
    return {
        "memory": f"rlimit per process, and the sum {watched}",
        "pids": f"number {watched}",
        "cpu": f"seconds, as gVisor estimates them, {watched}; the rate is not limited",
        **everywhere,
        "network": "gVisor's own stack: loopback alone",
        "syscalls": "gVisor's own kernel",
        "namespaces": f"{NOT_ENFORCED}: gVisor lets an agent make its own, within gVisor's kernel",
        "devices": f"{NOT_ENFORCED}: an agent may make device nodes, of which only gVisor's own /dev/fuse and /dev/net/tun open",
        "io_uring": f"{NOT_ENFORCED}: gVisor has one of its own, within gVisor's kernel",
        "/proc tricks": f"{NOT_ENFORCED}: an agent may write its own oom_score_adj, which gVisor keeps and nobody heeds",
        "process 1": "another user's. Its shell's supervisor is not protected: an agent that kills that ends its own box",
    }
