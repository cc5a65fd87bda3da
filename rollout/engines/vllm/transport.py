"""How new weights reach vLLM's workers: one small protocol, a transport for machines without CUDA, and vLLM's own for CUDA.

A transport drives the four calls of `replica.Control` (vLLM's weight transfer API) and moves the tensors meanwhile. What a
processor needs afterwards (packing for its kernels, a tied head) is the receiving side's affair: `worker.FileTransfer` does
it on a CPU; vLLM's CUDA backends need none.

`FileTransport` is run in the tests. `CudaTransport` (nccl, ipc) is written after vLLM 0.32's own interfaces and NOT RUN:
no CUDA machine was at hand.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Any, Protocol

from envfarm.errors import UserError
from rollout.engines.vllm.replica import Control
from rollout.engines.vllm.settings import BACKEND


class WeightTransport(Protocol):
    """One per replica; a replica that is started anew gets a new one."""

    backend: str  # what vLLM calls the receiving end, in its weight transfer config

    async def send(self, control: Control, state: Mapping[str, Any], checksum: str, label: str) -> None:
        """Replace all weights by `state`, and name them. The replica is paused meanwhile.

        Raises: UpdateRefused, EngineDied.
        """
        ...


class FileTransport:
    """Through a file in memory, without a name: workers of the same machine and user open it by way of this process, and
    it is gone with its last reader, whoever is killed when. 10 ms for a small model, a copy of the weights for any."""

    backend = BACKEND

    async def send(self, control: Control, state: Mapping[str, Any], checksum: str, label: str) -> None:
        handle = os.memfd_create("envfarm-weights")
        try:
            path = f"/proc/{os.getpid()}/fd/{handle}"
            await asyncio.to_thread(_write, state, handle)
            await control.start_update()
            await control.send_update({"path": path, "checksum": checksum})
            await control.finish_update(label)
        finally:
            os.close(handle)


def _write(state: Mapping[str, Any], handle: int) -> None:
    from safetensors.torch import save

    with open(handle, "wb", closefd=False) as file:
        file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


class CudaTransport:
    """vLLM's own engines for CUDA: `nccl` (workers anywhere, one process group with this process) or `ipc` (workers on the
    same GPU). NOT RUN. The sending side is synchronous and calls back for the control plane, so it has a thread."""

    def __init__(self, backend: str, workers: int = 1):
        self.backend, self.workers = backend, workers
        self._sender: Any = None

    async def send(self, control: Control, state: Mapping[str, Any], checksum: str, label: str) -> None:
        client = _Client(control, asyncio.get_running_loop(), label)
        await asyncio.to_thread(self._send, client, state)

    def _send(self, client: _Client, state: Mapping[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        class State(WeightSource):
            weights: Mapping[str, Any] = state

            def metadata(self) -> list[ParamMeta]:
                return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self.weights.items()]

            def __iter__(self) -> Any:
                return ((name, t.detach().cuda().contiguous()) for name, t in self.weights.items())

        if self._sender is None:
            self._sender = WeightTransferTrainerFactory.trainer_init(self._info(), client=client, source=State())
        else:
            self._sender.client, self._sender.source = client, State()
        self._sender.send_weights()

    def _info(self) -> Any:
        if self.backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return NCCLTrainerInitInfo(master_address="127.0.0.1", master_port=port, world_size=1 + self.workers, rank=0)


class _Client:
    """`vllm.distributed.weight_transfer.base.VLLMWeightSyncClient`, for a thread, over an event loop's `Control`."""

    def __init__(self, control: Control, loop: asyncio.AbstractEventLoop, label: str):
        self.control, self.loop, self.label = control, loop, label

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._wait(self.control.init_transfer(init_info))

    def start_weight_update(self) -> None:
        self._wait(self.control.start_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._wait(self.control.send_update(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._wait(self.control.finish_update(self.label))

    def _wait(self, call: Any) -> None:
        asyncio.run_coroutine_threadsafe(call, self.loop).result()


def transport_of(name: str | None, device: str | None) -> WeightTransport:
    """`file`, `nccl` or `ipc`; where nothing is said, `file`, which works on every machine that holds both ends."""
    if name in (None, "file"):
        return FileTransport()
    if device == "cpu":
        raise UserError(f"engine.transport is {name!r}, which needs CUDA at both ends; leave it out, or say `file`")
    assert name is not None
    return CudaTransport(name)
