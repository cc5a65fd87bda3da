"""An engine that answers `7` at once, with logprobs: what is left is everything around an engine."""

from __future__ import annotations

from typing import Any

from rollout.build import ModelFolder
from rollout.engines.base import Capabilities, Generation
from rollout.renderers.base import Renderer
from rollout.types import PolicyVersion, SamplingParams


class InstantEngine:
    def __init__(self, renderer: Renderer):
        self.capabilities = Capabilities(token_ids=True, logprobs=True, seeds=True, versions=True)
        self._ids = [*renderer.tokenizer.encode("7"), renderer.stop_ids[0]]
        self._version = PolicyVersion("policy")

    async def start(self) -> None:
        pass

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        return Generation(self._ids, [-0.1] * len(self._ids), "stop", self._version)

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        self._version = version

    async def close(self) -> None:
        pass


class InstantModel(InstantEngine):
    """Made as any engine of somebody's own: from model folders, by `module:Class`."""

    def __init__(self, models: dict[str, str], **_: Any):
        (folder,) = models.values()
        super().__init__(ModelFolder.open(folder).renderer())
