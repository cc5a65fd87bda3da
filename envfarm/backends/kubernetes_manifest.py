"""What a pod of a box is allowed to do, as the API takes it, and in words.

It passes the Pod Security Standard "restricted", has no token, and knows nothing of us or of the cluster:

- `subPath`: a volume's own root belongs to root, and so a first container (of the same rights) makes the folders in them that
  the agent owns. They are tmpfs.
- `env -i`: the cluster puts variables of its services into every container.
- The file for last words (`terminationMessagePath`) is one on the node's disk that the agent may write to, without a limit. It
  lies in a folder that only root can enter.
"""

from __future__ import annotations

from typing import Any

from envfarm.backends import remote_loop, rootfs
from envfarm.backends.remote_box import variables
from envfarm.backends.remote_shell import TICK_S
from envfarm.box import NOT_ENFORCED, WORKDIR, BoxSpec

CONTAINER = "box"
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_CPU_ASKED = 0.01  # of the limit: boxes mostly wait
_LOG_BYTES = 512 << 20
"""What the node may keep for a box: its output is also in the node's log, which is cut at some 50 MiB now and then."""
_GRACE_S = 1

_TMP, _SHM, _IN = "/tmp", "/dev/shm", rootfs.STDIN_DIR


def pod(spec: BoxSpec, labels: dict[str, str], deadline_s: float) -> dict[str, Any]:
    """`labels` as in `owners`; the box's name is the pod's."""
    environment = {**rootfs.PINNED_ENV, "PATH": _PATH, "__b": variables()["__b"]}
    sizes = {**rootfs.sizes(spec), _SHM: rootfs.SHM_BYTES, _IN: rootfs.STDIN_BYTES}
    open_to_all = [f"{path}/d" for path in (_TMP, _SHM)]
    owned = [f"{path}/d" for path in sizes if path not in (_TMP, _SHM)]
    make_folders = f"umask 0; mkdir -m 0755 {' '.join(owned)} && mkdir -m 1777 {' '.join(open_to_all)}"
    alike = {
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "resources": _resources(spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": "/root/last-words",
    }
    clean = " ".join(["exec env -i", *(f'"{name}=${name}"' for name in environment), '"$0" "$@"'])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": labels["envfarm.box"], "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": max(1, int(deadline_s)),
            "terminationGracePeriodSeconds": _GRACE_S,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "hostname": rootfs.HOSTNAME,
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["127.0.0.1"]},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": rootfs.UID,
                "runAsGroup": rootfs.GID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [
                {"name": _volume(path), "emptyDir": {"medium": "Memory", "sizeLimit": str(size)}} for path, size in sizes.items()
            ],
            "initContainers": [
                {
                    "name": "folders",
                    **alike,
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "command": ["/bin/sh", "-c", make_folders],
                    "volumeMounts": [{"name": _volume(path), "mountPath": path} for path in sizes],
                }
            ],
            "containers": [
                {
                    "name": CONTAINER,
                    **alike,
                    "command": [_literal(word) for word in ("/bin/sh", "-c", clean, *remote_loop.entry())],
                    "workingDir": WORKDIR,
                    "stdin": True,
                    "stdinOnce": True,
                    "env": [{"name": n, "value": _literal(v)} for n, v in {**environment, "__f": variables()["__f"]}.items()],
                    "volumeMounts": [{"name": _volume(path), "mountPath": path, "subPath": "d"} for path in sizes],
                }
            ],
        },
    }


def _resources(spec: BoxSpec) -> dict[str, dict[str, str]]:
    memory, cpu = str(spec.memory_bytes), int(spec.cpu * 1000)
    return {
        "limits": {"memory": memory, "cpu": f"{cpu}m", "ephemeral-storage": str(_LOG_BYTES)},
        "requests": {"memory": memory, "cpu": f"{max(1, int(cpu * _CPU_ASKED))}m", "ephemeral-storage": "1Mi"},
    }


def _volume(path: str) -> str:
    return path.strip("/").replace("/", "-")


def _literal(text: str) -> str:
    """Kubernetes puts variables into commands and values."""
    return text.replace("$", "$$")


def enforcement() -> dict[str, str]:
    """See `Backend.enforcement`."""
    return {
        "memory": "the pod's limit, by the node's control groups; where they end a container as a whole (version 2 and "
        "Kubernetes 1.28 or newer) the box is spent",
        "pids": f"{NOT_ENFORCED} at once: counted every {TICK_S} s from inside; at once by the node, where its podPidsLimit is "
        "set",
        "cpu": f"the pod's limit: the rate; seconds looked at every {TICK_S} s",
        "disk": "tmpfs size, from Kubernetes 1.22; counted as memory",
        "output": "bytes kept per stream",
        "idle": "wall clock",
        "network": f"{NOT_ENFORCED} by the pod, which has an interface: a NetworkPolicy, where the cluster's network plugin "
        "enforces it",
        "syscalls": f"{NOT_ENFORCED} beyond the container runtime's default seccomp profile, which lets ptrace pass, and that of "
        "older runtimes io_uring",
        "tracing": f"{NOT_ENFORCED}: an agent may write into the memory of its box's shells, and harms its own box alone",
    }
