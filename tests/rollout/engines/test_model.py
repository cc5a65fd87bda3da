"""The decoder for training, its folder, and its likeness to Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from envfarm.errors import CapabilityError, UserError
from rollout.engines.torch.checkpoint import checksum, load_state
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder

TIED = ModelConfig(vocab=90, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, max_len=64)
UNTIED = ModelConfig(vocab=70, width=24, layers=3, heads=3, kv_heads=1, head_dim=16, ffn=40, max_len=64, tie=False)


def packed(lengths: list[int], vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, vocab, (sum(lengths),), generator=torch.Generator().manual_seed(5))
    return tokens, torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_transformers_reads_the_folder_and_agrees(config: ModelConfig, tmp_path: Path) -> None:
    decoder = Decoder(config, seed=4)
    for weight in decoder.parameters():  # norms that are all ones would hide a mistake
        if weight.ndim == 1:
            weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(weight)))
    decoder.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    tokens, bounds = packed([9, 30, 1], config.vocab)
    with torch.no_grad():
        ours = decoder(tokens, bounds)
        expected = torch.cat([theirs(part[None]).logits[0] for part in tokens.split([9, 30, 1])])
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_a_folder_that_transformers_wrote_loads(tie: bool, tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=80, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=tie, rope_theta=5000.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = transformers.Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = Decoder.load(tmp_path)
    tokens, bounds = packed([20], 80)
    with torch.no_grad():
        assert (ours(tokens, bounds) - theirs(tokens[None]).logits[0]).abs().max() < 1e-4


def test_a_sequence_does_not_see_its_neighbours_in_the_pack() -> None:
    decoder = Decoder(TIED)
    tokens, bounds = packed([7, 3, 12], 90)
    together = decoder(tokens, bounds)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        alone = decoder(tokens[start:stop], torch.tensor([0, stop - start]))
        assert torch.allclose(together[start:stop], alone, atol=1e-5)
    hidden = decoder.hidden(tokens, bounds)
    assert torch.allclose(decoder.logits(hidden[[2, 9]]), together[[2, 9]], atol=1e-5)


def test_every_weight_gets_a_gradient_and_the_past_does_not_see_the_future() -> None:
    decoder = Decoder(UNTIED)
    tokens, bounds = packed([10, 5], 70)
    torch.log_softmax(decoder(tokens, bounds), -1)[:, 3].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
    changed = tokens.clone()
    changed[6] = (changed[6] + 1) % 70
    with torch.no_grad():
        assert torch.allclose(decoder(tokens, bounds)[:6], decoder(changed, bounds)[:6], atol=1e-6)


def test_the_seed_decides_the_weights_and_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    a, b, c = Decoder(TIED, seed=3), Decoder(TIED, seed=3), Decoder(TIED, seed=4)
    assert torch.equal(torch.rand(3), expected)
    assert checksum(a.state_dict()) == checksum(b.state_dict()) != checksum(c.state_dict())
    assert sum(p.numel() for p in a.parameters()) == TIED.parameters()
    assert sum(p.numel() for p in Decoder(UNTIED).parameters()) == UNTIED.parameters()
    assert 250_000 < ModelConfig(vocab=384).parameters() < 400_000


def test_checksum_covers_names_shapes_types_and_bytes() -> None:
    base = {"a": torch.arange(6.0).view(2, 3)}
    others = [
        {"b": base["a"]},
        {"a": base["a"].view(3, 2)},
        {"a": base["a"].double()},
        {"a": base["a"] + torch.tensor([0, 0, 1e-6])},
        base | {"b": torch.zeros(1)},
    ]
    assert len({checksum(s) for s in [base, *others]}) == 6
    assert checksum({"x": torch.ones(1), "y": base["a"].t()}) == checksum({"y": base["a"].t().contiguous(), "x": torch.ones(1)})


def test_save_and_load_are_inverse_and_replace_refuses_what_does_not_fit(tmp_path: Path) -> None:
    decoder = Decoder(UNTIED, seed=9)
    decoder.save(tmp_path)
    loaded = Decoder.load(tmp_path)
    assert loaded.config == UNTIED and checksum(loaded.state_dict()) == checksum(decoder.state_dict())
    before = checksum(loaded.state_dict())
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        loaded.replace({k: v for k, v in decoder.state_dict().items() if k != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight is"):
        loaded.replace(decoder.state_dict() | {"model.norm.weight": torch.ones(5)})
    assert checksum(loaded.state_dict()) == before


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Decoder.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Decoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CapabilityError, match="'gpt2', not 'qwen3' or 'llama'"):
        Decoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TIED.to_hf()))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        Decoder.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0abc")
    with pytest.raises(UserError, match="damaged"):
        load_state(tmp_path)


@pytest.mark.parametrize("wrong", [{"heads": 3, "kv_heads": 2}, {"head_dim": 7}, {"layers": 0}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"model.{next(iter(wrong))}"):
        ModelConfig(**wrong)
