"""A container in gVisor, whose kernel, unlike Linux's, lets a process kill process 1 of its box.

Who killed process 1 the engine cannot tell: its exit code is the same, and how its neighbours ended is a race. So process 1
belongs to another user here, whom the agent may not signal, and does nothing; the supervisor of the agent's shell is an exec
beside it. Where that ends and the container lives, the agent has killed it. Where the container ends, somebody else did.
(Who kills that exec's own process on the engine's machine, and nothing else, is taken for the agent.)
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from envfarm.backends import docker_config, remote_loop, rootfs
from envfarm.backends.docker_container import AttachedContainer, Container, EngineError, ended_from_outside, without
from envfarm.backends.docker_stream import SocketPipe
from envfarm.backends.remote_streams import Death, Lost, NoRoom
from envfarm.box import WORKDIR, BoxSpec

_NOBODY = f"{rootfs.UID + 1}:{rootfs.GID + 1}"
_WAIT = "while read -r l; do :; done"
_IDLE = [
    "/bin/sh",
    "-c",
    f"for s in /bin/bash /usr/bin/bash; do [ -x $s ] && exec $s --norc --noprofile -c '{_WAIT}'; done; {_WAIT}",
]
"""Nothing is ever written to it. bash reaps meanwhile what the agent's processes leave behind; another sh leaves it dead."""

_ANSWER_S = 20.0
_NOTICE_S = 10.0
"""How long the engine may take to notice an end."""


def configuration(spec: BoxSpec, labels: dict[str, str]) -> dict[str, Any]:
    """See `docker_config.configuration`."""
    alike = docker_config.configuration(spec, docker_config.RUNSC, labels)
    return {**alike, "user": _NOBODY, "entrypoint": _IDLE}


class AttachedGvisor(AttachedContainer):
    _supervisor: str
    """The exec, as the engine names it."""

    async def open_main(self) -> SocketPipe:
        try:
            self._supervisor, self._main = await self._exec(remote_loop.entry(), WORKDIR)
        except EngineError:
            raise Lost from None
        return self._main

    async def open_side(self, *, crowded: bool, silent: bool) -> SocketPipe:
        """Where one did not answer the box is given up: an exec in a sandbox that a fork bomb has wedged hangs for minutes, and
        meanwhile the engine cannot end the container."""
        if silent:
            raise NoRoom if await self._runs() else Lost
        return await super().open_side(crowded=crowded, silent=silent)

    async def death(self) -> Death:
        api, call = self._engine.api, self._engine.call
        try:
            if await self._answers():
                return await self._supervisor_ended()
            with suppress(EngineError):  # it may have to be noticed first
                await call(api.wait, self._name, timeout=_NOTICE_S, condition="not-running")
            state = await self._state()
        except EngineError as error:
            return without(error)
        if state["Running"]:
            return Death("it does not answer any more", by_agent=True, limit="idle")
        return ended_from_outside(state)

    async def _answers(self) -> bool:
        """Whether process 1's user can still run something in it, which no agent can prevent by a signal."""
        api, call = self._engine.api, self._engine.call
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                made = await call(api.exec_create, self._name, ["/bin/sh", "-c", ":"], user=_NOBODY, workdir="/")
                await call(api.exec_start, made["Id"])
                return (await call(api.exec_inspect, made["Id"]))["ExitCode"] == 0
        return False

    async def _supervisor_ended(self) -> Death:
        """Raises: EngineError."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_S):
                while (state := await self._engine.call(self._engine.api.exec_inspect, self._supervisor))["Running"]:
                    await asyncio.sleep(0.05)
                return Death("its shell's supervisor was killed", by_agent=True, exit_code=state["ExitCode"])
        return Death("the connection to its container was lost")


class GvisorContainer(AttachedGvisor, Container):
    """A container of this process's own."""
