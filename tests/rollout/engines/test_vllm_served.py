"""What a policy on vLLM does when vLLM dies, refuses, or gives wrong answers: with a scripted replica in vLLM's place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from envfarm.errors import CapabilityError, InfraError, UserError
from rollout.engines.base import Adapter, Probe
from rollout.engines.vllm.replica import EngineDied, HalfLoaded, Lora, Reply, UpdateRefused
from rollout.engines.vllm.served import ServedPolicy
from rollout.engines.vllm.settings import Settings
from rollout.types import PolicyVersion, SamplingParams
from tests.rollout.engines.vllm_scene import MODELS, PROBE, folders, version_of


class Script:
    """What all replicas of a test have in common: what happened, and what is to happen."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.faults: dict[str, list[Exception]] = {}  # method -> raised by its next calls, in order
        self.answer: list[float] = [0.0] * (len(PROBE) - 1)  # to a probe
        self.gate: asyncio.Event | None = None  # holds replies back

    def happen(self, what: str) -> None:
        self.log.append(what)
        waiting = self.faults.get(what.split()[0], [])
        if waiting:
            raise waiting.pop(0)


class ScriptedReplica:
    """Says the label that it was given last as the weights of three tokens."""

    def __init__(self, script: Script):
        self.script, self.label, self.pids = script, "", [0]

    async def start(self) -> None:
        self.script.happen("start")

    async def generate(self, prompt: list[int], params: SamplingParams, salt: str, lora: Lora | None) -> Reply:
        self.script.happen("generate")
        if self.script.gate is not None:
            await self.script.gate.wait()
            self.script.happen("reply")
        return Reply([1, 2, 3], [-1.0, -1.0, -1.0], "stop", [(0, self.label)])

    async def score(self, token_ids: list[int], lora: Lora | None) -> list[float]:
        self.script.happen("score")
        return self.script.answer

    async def name(self, label: str) -> None:
        self.label = label

    async def pause(self) -> None:
        self.script.happen("pause")

    async def resume(self) -> None:
        self.script.happen("resume")

    async def abort_all(self) -> None:
        self.script.happen("abort")

    async def init_transfer(self, info: dict[str, Any]) -> None: ...
    async def start_update(self) -> None: ...
    async def send_update(self, info: dict[str, Any]) -> None:
        self.script.happen("send")

    async def finish_update(self, label: str) -> None:
        self.script.happen("finish " + label.partition("#")[0])
        self.label = label

    async def add_lora(self, lora: Lora) -> None:
        self.script.happen(f"adapter {lora.number}")

    async def remove_lora(self, lora: Lora) -> None:
        self.script.happen(f"without {lora.number}")

    async def close(self) -> None:
        self.script.happen("close")


class DirectTransport:
    backend = "scripted"

    async def send(self, control: Any, state: Mapping[str, Any], checksum: str, label: str) -> None:
        await control.start_update()
        await control.send_update({})
        await control.finish_update(label)


def scene(
    test: Callable[[ServedPolicy, Script], Awaitable[None]], folder: Path, *, foreign: bool = False, lora_rank: int = 0
) -> None:
    script = Script()
    settings = Settings(folders(folder)["tied"], lora_rank=lora_rank)

    async def play() -> None:
        def make() -> tuple[ScriptedReplica, DirectTransport]:
            return ScriptedReplica(script), DirectTransport()

        policy = ServedPolicy(settings, version_of("tied", 0), make, restarts=2, foreign=foreign)
        await policy.start()
        await test(policy, script)
        await policy.close()
        assert script.log[-1] == "close"

    asyncio.run(asyncio.wait_for(play(), 60))


ONE = SamplingParams(max_tokens=4)
NEW = MODELS["tied", 1].state_dict()
V0, V1 = version_of("tied", 0), version_of("tied", 1)


def test_an_update_is_paused_for_named_and_resumed(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        assert (await policy.generate([1], ONE)).version == V0
        await policy.update(V1, NEW, Probe(PROBE, script.answer))
        assert script.log == ["start", "generate", "pause", "send", "finish tied@0.1", "resume", "score"]
        assert (await policy.generate([1], ONE)).version == V1 == policy.weights.version

    scene(test, tmp_path)


def test_weights_of_a_server_that_is_not_ours_are_pushed_before_anything_else(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        assert script.log == ["start", "pause", "send", "finish tied@0.0", "resume"]

    scene(test, tmp_path, foreign=True)


def test_refused_before_anything_is_loaded_nothing_is_put_back(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        script.faults["send"] = [UpdateRefused("no room")]
        with pytest.raises(ValueError, match=r"tied@0\.1: vLLM refused the weights: no room; tied@0\.0 goes on serving"):
            await policy.update(V1, NEW, None)
        assert script.log == ["start", "pause", "send", "resume"] and policy.weights.version == V0

    scene(test, tmp_path)


def test_a_wrong_answer_to_the_probe_ends_what_is_in_flight_and_puts_the_old_weights_back(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        with pytest.raises(ValueError, match="off by 1"):
            await policy.update(V1, NEW, Probe(PROBE, [1.0] * (len(PROBE) - 1)))
        assert script.log[-5:] == ["abort", "pause", "send", "finish tied@0.0", "resume"]
        assert (await policy.generate([1], ONE)).version == V0

    scene(test, tmp_path)


def test_weights_that_were_loaded_by_halves_are_never_served(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        script.faults["finish"] = [HalfLoaded("out of memory")]
        with pytest.raises(ValueError, match="out of memory"):
            await policy.update(V1, NEW, None)
        with pytest.raises(InfraError, match="started again"):
            await policy.generate([1], ONE)
        await policy.ready()
        assert script.log[-2:] == ["close", "start"]
        assert (await policy.generate([1], ONE)).version == V0

    scene(test, tmp_path)


def test_death_during_an_update_is_mended_and_the_update_made(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        script.faults["send"] = [EngineDied("gone")]
        await policy.update(V1, NEW, None)
        assert script.log == ["start", "pause", "send", "close", "start", "pause", "send", "finish tied@0.1", "resume"]
        assert policy.restarts == 1 and (await policy.generate([1], ONE)).version == V1

    scene(test, tmp_path)


def test_after_a_death_the_pushed_weights_are_served_again_and_one_death_is_one_restart(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        await policy.update(V1, NEW, None)
        script.gate, script.faults["reply"] = asyncio.Event(), [EngineDied("gone")] * 3
        asked = [asyncio.create_task(policy.generate([1], ONE)) for _ in range(3)]
        await asyncio.sleep(0)
        script.gate.set()
        failed = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(f, InfraError) for f in failed)
        await policy.ready()
        assert policy.restarts == 1 and script.log.count("start") == 2
        assert script.log[-4:] == ["pause", "send", "finish tied@0.1", "resume"]
        assert (await policy.generate([1], ONE)).version == V1

    scene(test, tmp_path)


def test_restarts_are_bounded(tmp_path: Path) -> None:
    async def test(policy: ServedPolicy, script: Script) -> None:
        script.faults = {"generate": [EngineDied("gone")], "start": [EngineDied("no memory"), EngineDied("no memory")]}
        with pytest.raises(InfraError, match="gone; 2 restarts are left"):
            await policy.generate([1], ONE)
        for _ in range(2):
            with pytest.raises(InfraError, match=r"no memory; it was started again as often as `engine.restarts` allows"):
                await policy.ready()
        assert script.log.count("start") == 3

    scene(test, tmp_path)


def test_adapters_lie_side_by_side_until_their_last_request_ends(tmp_path: Path) -> None:
    def adapter() -> Adapter:
        return Adapter({"r": 2, "peft_type": "LORA"}, {"base.lora_A.weight": torch.zeros(2, 4)})

    async def test(policy: ServedPolicy, script: Script) -> None:
        versions = [PolicyVersion("tied", 0, n, f"c{n}") for n in range(5)]
        await policy.update(versions[1], adapter(), None)
        script.gate = asyncio.Event()
        held = asyncio.create_task(policy.generate([1], ONE))
        await asyncio.sleep(0)
        await policy.update(versions[2], adapter(), None)
        await policy.update(versions[3], adapter(), None)
        assert script.log[-4:] == ["adapter 1", "generate", "adapter 2", "adapter 3"]
        script.gate.set()
        assert (await held).version == versions[1], "it ends with the adapter that it began with"
        assert (await policy.generate([1], ONE)).version == versions[3]
        await policy.update(versions[4], adapter(), None)
        assert script.log[-3:] == ["without 1", "without 2", "adapter 4"]
        with pytest.raises(CapabilityError, match="takes no full weights"):
            await policy.update(V1, NEW, None)
        assert policy._folder is not None and sorted(p.name for p in Path(policy._folder.name).iterdir()) == ["1", "2", "3", "4"]

    scene(test, tmp_path, lora_rank=2)


def test_a_folder_whose_weights_are_not_those_of_its_version(tmp_path: Path) -> None:
    settings = Settings(folders(tmp_path)["tied"])

    async def play() -> None:
        policy = ServedPolicy(
            settings, PolicyVersion("tied", 0, 0, "beef"), lambda: (ScriptedReplica(Script()), DirectTransport()), restarts=0
        )
        with pytest.raises(UserError, match="its weights have checksum"):
            await policy.start()

    asyncio.run(play())
