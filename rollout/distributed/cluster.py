"""A connection to a Ray cluster: one that is started here and ends with us, or one that is there already.

Ray waits for minutes, or for ever, for a head that does not answer; so it is knocked at first. A cluster of our own
keeps its files in a directory of its own, which is gone when we are, after `kill -9` too: Ray's processes are killed
by the kernel together with the one that started them, and a shell that outlives us removes the directory.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import subprocess
import tempfile
from typing import Any

import ray

from envfarm.errors import UserError
from rollout.run import RayEntry

CONNECT_TIMEOUT_S = 5.0
PREFIX = "envfarm-ray-"
_MAX_BASE_BYTES = 16
"""The kernel takes socket paths of up to 107 bytes; Ray's part of one needs some 90."""
_REMOVER = 'cat >/dev/null; n=0; while [ -e "$1" ] && [ $n -lt 100 ]; do rm -rf "$1"; n=$((n+1)); sleep 0.2; done'
"""Waits for the end of standard input, which is the owner's end; Ray's last processes may write a little longer."""


class Cluster:
    """Made by `join`."""

    def __init__(self, folder: str | None, remover: subprocess.Popen[bytes] | None, ours: bool):
        self._folder, self._remover, self._ours = folder, remover, ours

    @classmethod
    def join(cls, entry: RayEntry) -> Cluster:
        """Connect, or start a cluster on this machine where no address is given. In a process that is connected already
        (a program of somebody's own) that connection is used, and left as it is.

        Blocks for seconds, and stays in the thread that it is called in: the kernel ends Ray's processes with it.
        Raises: UserError where nobody answers, or Ray refuses.
        """
        logging.getLogger("ray").setLevel(logging.ERROR)  # it would write between the lines of our screen
        if ray.is_initialized():
            return cls(None, None, ours=False)
        if entry.address is None:
            return cls._start(entry)
        _knock(entry.address)
        _init(entry.address, address=entry.address)
        return cls(None, None, ours=True)

    @classmethod
    def _start(cls, entry: RayEntry) -> Cluster:
        base = tempfile.gettempdir()
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=base if len(os.fsencode(base)) <= _MAX_BASE_BYTES else "/tmp")
        remover = subprocess.Popen(["sh", "-c", _REMOVER, "sh", folder], stdin=subprocess.PIPE, start_new_session=True)
        made = cls(folder, remover, ours=True)
        try:
            _init(
                "a cluster on this machine", address="local", num_cpus=math.ceil(entry.workers * entry.cpus),
                resources={name: amount * entry.workers for name, amount in entry.resources.items()},
                object_store_memory=entry.object_store, include_dashboard=False, _temp_dir=folder,
            )  # fmt: skip
        except BaseException:
            made.leave()
            raise
        return made

    def leave(self) -> None:
        """Disconnect; end what was started here, and remove what it wrote. Idempotent."""
        if self._ours:
            ray.shutdown()
        self._ours = False
        if self._folder is not None and self._remover is not None and self._remover.stdin is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._remover.stdin.close()
            self._remover.wait()

    @staticmethod
    def room() -> str:
        """What the cluster has and what of it is free, for error messages."""
        total, free = ray.cluster_resources(), ray.available_resources()
        names = sorted(n for n in total if not n.startswith(("node:", "memory", "object_store")))
        shown = ", ".join(f"{name} {total[name]:g} ({free.get(name, 0):g} free)" for name in names)
        return shown or "nothing"


def _knock(address: str) -> None:
    """Raises: UserError where nobody listens at a `ray://HOST:PORT` or `HOST:PORT`."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"ray.address: nobody answers at {address} ({error}). Start a head there (`ray start --head`; its client port, "
            "for ray://, is 10001), mend the address, or leave it out for a cluster on this machine"
        ) from None


def _init(what: str, **options: Any) -> None:
    """Raises: UserError with Ray's words; it exits where something answers that is no head."""
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError, SystemExit) as error:
        hint = ". Its nodes and its users share one token: copy ~/.ray/auth_token" if "token" in str(error).lower() else ""
        raise UserError(f"ray: cannot join {what}: {error}{hint}") from error
