"""What `benchmarks.boxes` compares with: containers and pods of the same limits and environment variables (a program loads its
locale), made without us, with a plain shell inside.

The shell reads lines and answers each with an empty one: no exit codes, its streams not apart, nobody who watches. A container
is `docker run` of the command line. A pod is made by the official client, and is up when the API says so; its shell is
`kubectl attach`ed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from envfarm.backends import owners, rootfs
from envfarm.backends.docker_config import host_config
from envfarm.backends.kubernetes_api import ask, connect, pods_of
from envfarm.backends.kubernetes_manifest import CONTAINER, pod
from envfarm.box import WORKDIR, BoxSpec

LOOP = 'while read -r line; do eval "$line"; echo; done'
SHELL = ("/bin/bash", "--norc", "-c")
"""That of our boxes in the same image."""
DEADLINE_S = 600.0
_NUMBERS = itertools.count()


class Shell:
    """A process whose standard streams are those of a shell in a container or pod."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process

    async def heard(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    async def run(self, command: bytes) -> None:
        """One that prints nothing."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + b"\n")
        assert await self.heard() == b"\n"

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


async def _shell(*command: str) -> Shell:
    return Shell(await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))


class RawContainer:
    """`docker run`, from the call to the first byte of its shell."""

    def __init__(self, spec: BoxSpec):
        self._spec = spec

    async def start(self) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as seccomp:
            command = ["docker", "run", "--rm", "--interactive", *self._flags(Path(seccomp.name)), self._spec.image]
            self._shell = await _shell(*command, *SHELL, f"echo up; {LOOP}")
            assert await self._shell.heard() == b"up\n"

    async def shell(self) -> Shell:
        return self._shell

    async def stop(self) -> None:
        await self._shell.end()

    def _flags(self, seccomp: Path) -> list[str]:
        """The configuration of our containers, in words of the command line."""
        config = host_config(self._spec, None)
        *options, profile = config["SecurityOpt"]
        seccomp.write_text(profile.removeprefix("seccomp="))
        labels = owners.labels(f"raw-{next(_NUMBERS)}", DEADLINE_S)
        return [
            "--cap-drop=ALL", "--read-only", f"--network={config['NetworkMode']}", f"--ipc={config['IpcMode']}",
            f"--memory={config['Memory']}", f"--memory-swap={config['MemorySwap']}", f"--pids-limit={config['PidsLimit']}",
            f"--cpus={config['NanoCpus'] / 1e9}", f"--shm-size={config['ShmSize']}", "--log-driver=none", f"--workdir={WORKDIR}",
            *(f"--security-opt={option}" for option in [*options, f"seccomp={seccomp}"]),
            *(f"--tmpfs={path}:{how}" for path, how in config["Tmpfs"].items()),
            *(f"--label={name}={value}" for name, value in labels.items()),
            *(f"--env={name}={value}" for name, value in rootfs.PINNED_ENV.items()),
        ]  # fmt: skip


class RawPod:
    """The same pod with a plain shell, from the call to the running state that the API shows."""

    def __init__(self, spec: BoxSpec):
        configuration, self._namespace = connect()
        self._pods = pods_of(configuration)
        self._name = f"raw-{os.getpid()}-{next(_NUMBERS)}"
        self._manifest = pod(spec, owners.labels(self._name, DEADLINE_S), DEADLINE_S)
        container = self._manifest["spec"]["containers"][0]
        container["command"] = [*SHELL, LOOP]
        container["env"] = [variable for variable in container["env"] if not variable["name"].startswith("__")]  # our scripts

    async def start(self) -> None:
        await asyncio.to_thread(self._create)

    def _create(self) -> None:
        from kubernetes.watch import Watch

        ask(self._pods.create_namespaced_pod, self._namespace, self._manifest)
        events = Watch().stream(
            self._pods.list_namespaced_pod, self._namespace, field_selector=f"metadata.name={self._name}", timeout_seconds=120
        )
        assert any(_runs(event["raw_object"]) for event in events), f"pod {self._name} did not come up"

    async def shell(self) -> Shell:
        where = ["--namespace", self._namespace, "--container", CONTAINER]
        self._attached = await _shell("kubectl", "attach", "--stdin", "--quiet", *where, self._name)
        return self._attached

    async def stop(self) -> None:
        """Without waiting until the node has ended it."""
        await asyncio.to_thread(ask, self._pods.delete_namespaced_pod, self._name, self._namespace)


def _runs(found: dict[str, Any]) -> bool:
    return found["status"]["phase"] == "Running"
