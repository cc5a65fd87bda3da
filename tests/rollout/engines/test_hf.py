"""Other Hugging Face models behind the same engine."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from envfarm.errors import UserError
from rollout.engines.torch.engine import TorchEngine
from rollout.types import PolicyVersion, SamplingParams


def llama(seed: int, tie: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tie, initializer_range=0.3,
        attention_bias=True,  # which our own decoder has not
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def logprobs(model: LlamaForCausalLM, ids: list[int], last: int) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids[1:])[:, None])[-last:, 0].numpy()


def test_ragged_conversations_are_what_the_model_alone_says(tmp_path: Path) -> None:
    model = llama(0)
    model.save_pretrained(tmp_path)

    async def talk(engine: TorchEngine, number: int) -> int:
        rng = random.Random(number)
        ids, cached = [rng.randrange(80) for _ in range(rng.randrange(2, 30))], 0
        for turn in range(4):
            params = SamplingParams(max_tokens=rng.randrange(1, 15), seed=number * 10 + turn)
            got = await engine.generate(ids, params, policy="llama", session=str(number))
            ids = ids + got.token_ids
            assert np.abs(logprobs(model, ids, len(got.token_ids)) - got.logprobs).max() < 1e-4
            ids += [rng.randrange(80) for _ in range(rng.randrange(1, 6))]
            cached += got.cached_tokens
        return cached

    async def play() -> None:
        engine = TorchEngine({"llama": tmp_path}, max_in_flight=5)
        await engine.start()
        assert not engine.capabilities.batch_invariant and engine.capabilities.token_ids
        assert min(await asyncio.gather(*[talk(engine, n) for n in range(8)])) >= 0
        assert await talk(engine, 99) > 40  # undisturbed, a conversation finds what it computed
        await engine.close()

    asyncio.run(play())


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_weights_are_replaced_in_flight(tie: bool, tmp_path: Path) -> None:
    old, new = llama(1, tie), llama(2, tie)
    old.save_pretrained(tmp_path)

    async def play() -> Any:
        engine = TorchEngine({"llama": tmp_path})
        await engine.start()
        reached, gate = threading.Event(), threading.Event()
        with engine._thread._wake:  # the engine's thread finds both at once: it takes the request in, and stops at the gate
            task = asyncio.create_task(engine.generate([1, 2, 3], SamplingParams(max_tokens=200, seed=4), policy="llama"))
            await asyncio.sleep(0)
            engine._thread.post(lambda: reached.set() or gate.wait())  # type: ignore[func-returns-value]
        await asyncio.to_thread(reached.wait)
        update = asyncio.create_task(engine.update_weights(PolicyVersion(policy="llama", number=1), new.state_dict()))
        await asyncio.sleep(0)  # the update waits behind the gate: one token of the old weights, the others of the new
        gate.set()
        await update
        probe = await engine.score([4, 5, 6, 7], policy="llama")
        assert np.abs(logprobs(new, [4, 5, 6, 7], 3) - probe).max() < 1e-3
        with pytest.raises(ValueError, match="do not fit"):
            await engine.update_weights(PolicyVersion(policy="llama", number=2), {"nonsense": torch.zeros(1)})
        got = await task
        await engine.close()
        return got

    got = asyncio.run(play())
    ids = [1, 2, 3, *got.token_ids]
    start, version = got.versions[-1]
    assert version.number == 1 and start == 1
    assert np.abs(logprobs(old, ids, 200)[:start] - got.logprobs[:start]).max() < 1e-3
    assert np.abs(logprobs(new, ids, 200)[start:] - got.logprobs[start:]).max() < 1e-3


def test_a_cancelled_call_leaves_the_others_alone(tmp_path: Path) -> None:
    model = llama(0)
    model.save_pretrained(tmp_path)

    async def play() -> None:
        engine = TorchEngine({"llama": tmp_path}, max_in_flight=2)
        await engine.start()
        params = SamplingParams(max_tokens=100, seed=1)
        doomed = [asyncio.create_task(engine.generate([9, i], params, policy="llama")) for i in range(3)]
        await engine.score([1, 2], policy="llama")
        kept = asyncio.create_task(engine.generate([5, 5, 5, 5], params, policy="llama"))
        await engine.score([1, 2], policy="llama")
        for task in doomed:
            task.cancel()
        ids = [5, 5, 5, 5, *(await kept).token_ids]
        assert np.abs(logprobs(model, ids, 100) - (await kept).logprobs).max() < 1e-3
        await engine.close()

    asyncio.run(play())


def test_a_folder_that_transformers_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(UserError, match="cannot load"):
        asyncio.run(TorchEngine({"x": tmp_path}).start())
