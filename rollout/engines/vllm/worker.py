"""What runs inside vLLM's workers: weights come in here. vLLM imports this module by the name in `--worker-extension-cls`.

Importing it registers the weight transfer `envfarm` and, in an engine that a run of ours started, begins to watch that
run's process: vLLM's processes survive a parent that was killed, and would keep their memory for ever.

On a CPU vLLM keeps weights packed for its kernels. A plain `load_weights` breaks such an engine half-way, so weights go
through vLLM's layerwise reload, which packs again; a head that is tied to the embedding is the one layer that this leaves
packed as it was, and is packed here.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload

from rollout.engines.torch.checkpoint import checksum
from rollout.engines.vllm.settings import BACKEND, OWNER, SOCKETS


@dataclass
class Nothing(WeightTransferInitInfo):
    """There is nothing to set up."""


@dataclass
class WeightFile(WeightTransferUpdateInfo):
    """All weights of a model, in a file of the same machine."""

    path: str
    checksum: str  # of what is in it, as `rollout.engines.torch.checkpoint.checksum` counts


class FileTransfer(WeightTransferEngine[Nothing, WeightFile]):
    """Read whole and checked before the first weight is touched: what is refused leaves the engine as it was."""

    init_info_cls = Nothing
    update_info_cls = WeightFile
    state: dict[str, Any] | None = None

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

    def start_weight_update(self) -> None:
        self.state = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # without the base's wait for an accelerator

    def receive_weights(self, update_info: WeightFile) -> None:
        state = load_file(update_info.path)
        found = checksum(state)
        if found != update_info.checksum:
            raise ValueError(f"the weights that arrived have checksum {found[:12]}, not {update_info.checksum[:12]}")
        self.state = state

    def finish_weight_update(self) -> None:
        state, self.state = self.state, None
        if state is None:
            raise ValueError("no weights arrived")
        initialize_layerwise_reload(self.model)
        self.model.load_weights(iter(state.items()))
        finalize_layerwise_reload(self.model, self.model_config)
        self._pack_tied_head()

    def _pack_tied_head(self) -> None:
        head = getattr(self.model, "lm_head", None)
        tied = getattr(self.model_config.hf_config, "tie_word_embeddings", False)
        if self.device.type == "cpu" and tied and hasattr(head, "weight"):
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def shutdown(self) -> None:
        self.state = None


class Extension:
    """Mixed into vLLM's worker class; what it is named for is this module."""


def ancestors(stop: int) -> list[int]:
    """Processes from the one below `stop` down to this one's parent; without the topmost where `stop` is none of them."""
    chain: list[int] = []
    pid = os.getppid()
    while pid > 1 and pid != stop:
        chain.insert(0, pid)
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return chain if pid == stop else chain[-1:]


def watch(owner: int) -> None:
    """End vLLM's processes when `owner` ends, however it ends. Returns at once; a thread waits."""
    chain = ancestors(owner)

    def wait() -> None:
        try:
            handle = os.pidfd_open(owner)
        except ProcessLookupError:
            pass  # it is gone already
        else:
            select.select([handle], [], [])
        if SOCKETS in os.environ:
            shutil.rmtree(os.environ[SOCKETS], ignore_errors=True)
        for pid in (*chain, os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    threading.Thread(target=wait, name="envfarm-owner-watch", daemon=True).start()


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
if OWNER in os.environ:
    watch(int(os.environ[OWNER]))
