"""A Llama folder on our own engine and trainer: what Transformers computes, to float32 rounding, and batch-invariant."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from envfarm.errors import UserError
from rollout.engines.torch.checkpoint import checksum
from rollout.engines.torch.engine import TorchEngine
from rollout.engines.torch.model import Decoder
from rollout.types import PolicyVersion, SamplingParams
from tests.rollout.tiny_chat import llama


def expected(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_the_packed_decoder_is_transformers_llama(tie: bool, tmp_path: Path) -> None:
    theirs = llama(2, tie=tie)
    theirs.save_pretrained(tmp_path)
    ours = Decoder.load(tmp_path)
    assert ours.config.family == "llama" and not ours.config.qk_norm and ours.config.rope_theta == 20_000.0
    rows = [[(7 * i + n) % 300 for i in range(length)] for n, length in enumerate((9, 40, 2))]
    bounds = torch.tensor([0, 9, 49, 51])
    with torch.no_grad():
        logprobs = torch.log_softmax(ours(torch.tensor([i for row in rows for i in row]), bounds), -1)
    for row, start in zip(rows, bounds.tolist(), strict=False):
        found = logprobs[start : start + len(row) - 1].gather(-1, torch.tensor(row[1:])[:, None])[:, 0].numpy()
        assert np.abs(found - expected(theirs, row)).max() < 1e-4
    ours.save(tmp_path / "again")
    again = Decoder.load(tmp_path / "again")
    assert again.config == ours.config and checksum(again.state_dict()) == checksum(ours.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == ours.config.parameters()


def test_the_engine_samples_what_transformers_says_and_takes_new_weights(tmp_path: Path) -> None:
    old, new = llama(1), llama(9)
    old.save_pretrained(tmp_path)
    before = torch.get_num_threads()

    async def play() -> None:
        engine = TorchEngine({"p": tmp_path}, max_in_flight=6)
        await engine.start()
        assert engine.capabilities.batch_invariant and engine.capabilities.context == 512
        prompts = [[(5 * i + n) % 300 for i in range(3 + 9 * n)] for n in range(9)]

        async def one(n: int) -> list[float]:
            got = await engine.generate(prompts[n], SamplingParams(max_tokens=12, seed=n), policy="p", session=str(n))
            ids = prompts[n] + got.token_ids
            assert np.abs(expected(old, ids)[-len(got.token_ids) :] - got.logprobs).max() < 1e-4
            return got.logprobs

        together = await asyncio.gather(*(one(n) for n in range(9)))
        assert [await one(n) for n in range(9)] == together  # alone, bit for bit
        await engine.update_weights(PolicyVersion(policy="p", number=1), new.state_dict())
        probe = await engine.score(prompts[4], policy="p")
        assert np.abs(expected(new, prompts[4]) - probe).max() < 1e-3
        assert np.abs(expected(old, prompts[4]) - probe).max() > 0.1
        await engine.close()

    asyncio.run(play())
    assert torch.get_num_threads() == before


def test_a_context_beyond_the_models_is_refused_and_a_damaged_config_named(tmp_path: Path) -> None:
    llama(0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"engine\.context is 513, but the model of policy 'p' reads at most 512 tokens"):
        asyncio.run(TorchEngine({"p": tmp_path}, context=513).start())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="damaged, it does not say vocab_size, hidden_size"):
        Decoder.load(tmp_path)
