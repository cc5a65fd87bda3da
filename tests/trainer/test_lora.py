"""LoRA of our own: the arithmetic, what is published and saved, and that peft means the same by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envfarm.errors import CapabilityError, StoreError, UserError
from envfarm.seeding import generator
from rollout.build import ModelFolder
from rollout.engines.base import Adapter
from rollout.engines.torch.adapter import TARGETS, Lora, factor_names, merge, merged_folder, read_adapter, targets_in
from rollout.engines.torch.checkpoint import checksum, load_state, shapes
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from tests.rollout.tiny_chat import chat_folder
from trainer.batch import Datum, datum
from trainer.client import AdamParams
from trainer.local import LocalClient
from trainer.weights import Adapted, Rounded, trained

CONFIG = ModelConfig(vocab=48, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, max_len=400, family="llama")
LORA = Lora(rank=3, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVFARM_CACHE", str(tmp_path / "cache"))


def make_data(rows: int = 6, seed: int = 0, beginning: int = 0) -> list[Datum]:
    rng = generator("lora data", seed)
    head = rng.integers(0, CONFIG.vocab, beginning)
    data = []
    for _ in range(rows):
        ids = np.concatenate([head, rng.integers(0, CONFIG.vocab, int(rng.integers(4, 30)))])
        mask = (rng.random(len(ids)) < 0.5) & (np.arange(len(ids)) >= max(beginning - 1, 0))
        mask[-1] = True
        data.append(datum(ids, mask, weight=0.2, logprobs=-rng.random(len(ids)), advantage=float(rng.normal())))
    return data


def adapted(seed: int = 0, dtype: str = "float32", lora: Lora = LORA, base: str = "base") -> LocalClient:
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    return LocalClient(Adapted(Decoder(CONFIG, seed=5), lora, base=base, dtype=kind, seed=seed), threads=1)


def steps(client: LocalClient, seeds: range, rate: float = 1e-2) -> None:
    for seed in seeds:
        client.forward_backward(make_data(seed=seed), "ppo")
        client.optim_step(AdamParams(learning_rate=rate)).result()


def test_it_begins_as_its_base_and_only_the_adapter_moves() -> None:
    client = adapted()
    base = Decoder(CONFIG, seed=5).state_dict()
    first = client.publish().result()
    assert first.version.checksum == checksum(base) == checksum(first.state)
    steps(client, range(3))
    after = client.publish().result()
    changed = {n for n in base if not torch.equal(after.state[n], base[n])}
    assert changed == set(targets_in(base, LORA)) and len(changed) == 3 * CONFIG.layers
    assert checksum(first.state) == first.version.checksum  # what was published before is left alone
    assert len(client.trained.names) == 2 * len(changed)
    client.close()


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_published_weights_are_what_was_trained_on(dtype: str) -> None:
    client, data = adapted(dtype=dtype), make_data(seed=9)
    steps(client, range(4))
    ours = client.forward(data).result().logprobs
    plain = Decoder(CONFIG)
    plain.replace(client.publish().result().state)
    other = LocalClient(plain, threads=1)
    expected = other.forward(data).result().logprobs
    difference = max(np.abs(a - b).max() for a, b in zip(ours, expected, strict=True))
    assert difference < (1e-5 if dtype == "float32" else 0.1)
    client.close()
    other.close()


def test_a_saved_adapter_acts_with_the_same_bits(tmp_path: Path) -> None:
    base = chat_folder(tmp_path / "base")
    model = Adapted(Decoder.load(base), Lora(rank=4, alpha=8.0), base=str(base), seed=1)
    client = LocalClient(model, threads=1)
    steps(client, range(2))
    version = client.publish().result().version
    assert not model.save_policy(tmp_path / "policy")
    (tmp_path / "policy" / "envfarm.json").write_text(
        json.dumps({"renderer": "chatml-text", "version": {"policy": "x", "number": 2, "checksum": version.checksum}})
    )
    assert all(t.dtype == torch.bfloat16 for t in read_adapter(tmp_path / "policy").tensors.values())
    folder = ModelFolder.open(tmp_path / "policy")
    assert folder.home == tmp_path / "policy" and folder.path != folder.home
    assert checksum(load_state(folder.path)) == version.checksum
    assert folder.renderer().name == "chatml-text"
    assert ModelFolder.open(folder.path).about == folder.about and merged_folder(tmp_path / "policy") == folder.path
    again = LocalClient(Adapted(Decoder.load(base), Lora(rank=4, alpha=8.0), base=str(base), seed=7), threads=1)
    assert again.load_weights(tmp_path / "policy").result() == version.checksum
    client.close()
    again.close()


def test_an_adapter_on_top_of_an_adapter(tmp_path: Path) -> None:
    below = chat_folder(tmp_path / "base")
    for name in ("first", "second"):
        model = Adapted(Decoder.load(ModelFolder.open(below).path), LORA, base=str(below))
        client = LocalClient(model, threads=1)
        steps(client, range(2))
        checksum_of_all = client.publish().result().version.checksum
        below = tmp_path / name
        model.save_policy(below)
        client.close()
    assert checksum(load_state(ModelFolder.open(below).path)) == checksum_of_all


def test_both_kinds_of_publishing_mean_the_same_weights() -> None:
    client = adapted()
    steps(client, range(2))
    full, small = client.publish().result(), client.publish("lora").result()
    assert isinstance(small.state, Adapter) and small.version == full.version
    made = merge(client.trained.base, Lora.from_peft(small.state.config, "x"), small.state.tensors)  # type: ignore[attr-defined]
    assert checksum(made) == full.version.checksum
    client.close()


def test_a_checkpoint_goes_on_as_if_nothing_had_been_and_belongs_to_its_base(tmp_path: Path) -> None:
    first = adapted()
    steps(first, range(2))
    first.save_state(tmp_path / "state").result()
    assert sum(f.stat().st_size for f in (tmp_path / "state").iterdir()) < 60_000  # the base is not in it
    steps(first, range(2, 4))
    second = adapted(seed=99)
    second.load_state(tmp_path / "state").result()
    steps(second, range(2, 4))
    assert first.publish().result().version.checksum == second.publish().result().version.checksum
    other = LocalClient(Adapted(Decoder(CONFIG, seed=6), LORA, base="base"), threads=1)
    with pytest.raises(StoreError, match="another base"):
        other.load_state(tmp_path / "state").result()
    for client in (first, second, other):
        client.close()


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_the_same_bits_at_any_count_of_threads(dtype: str) -> None:
    sums = set()
    for threads in (1, 2, 3):
        client = LocalClient(trained(Decoder(CONFIG, seed=5), dtype=dtype, lora=LORA, base="b"), max_tokens=64, threads=threads)
        steps(client, range(3))
        sums.add(client.publish().result().version.checksum)
        client.close()
    assert len(sums) == 1


def test_masters_take_steps_that_bf16_cannot_see() -> None:
    """A step of 1e-6 disappears in a bf16 weight of size 1; a thousand of them do not."""
    model = trained(Decoder(CONFIG, seed=5), dtype="bf16")
    assert isinstance(model, Rounded)
    place = model.names.index("model.norm.weight")
    master, leaf = model.masters[place].detach(), model.leaves[place].detach()
    for _ in range(1000):
        master.add_(1e-5)
        model.changed()
    assert float((master - 1.01).abs().max()) < 1e-3 and float(leaf[0]) == float(torch.tensor(1.01, dtype=torch.bfloat16))
    client = LocalClient(model, threads=1)
    steps(client, range(1), rate=1e-6)
    state = client.publish().result().state
    assert all(t.dtype == torch.float32 for t in state.values())
    assert float((state["model.norm.weight"] - 1.01).abs().max()) < 1e-3
    client.close()


def test_bf16_computes_nearly_what_float32_does() -> None:
    data = make_data(seed=3)
    exact, rounded = LocalClient(Decoder(CONFIG, seed=5), threads=1), LocalClient(trained(Decoder(CONFIG, seed=5), dtype="bf16"))
    a, b = (c.forward(data).result().logprobs for c in (exact, rounded))
    differences = np.concatenate([np.abs(x - y)[d.weights > 0] for x, y, d in zip(a, b, data, strict=True)])
    assert 0 < differences.mean() < 0.02 and differences.max() < 0.1
    exact.close()
    rounded.close()


def test_a_common_beginning_is_computed_once_and_changes_nothing() -> None:
    data = [*make_data(7, beginning=150), *make_data(2, seed=1)]
    client = LocalClient(
        Adapted(Decoder(CONFIG, seed=5).double(), LORA, base="b", dtype=torch.float64), threads=1, max_tokens=250
    )
    steps(client, range(2))

    def gradient(rows: list[Datum]) -> list[torch.Tensor]:
        client.forward_backward(rows, "ppo").result()
        found, client._gradients = client._gradients, None
        assert found is not None
        return found

    apart = [torch.stack(parts).sum(0) for parts in zip(*(gradient([d]) for d in data), strict=True)]
    for ours, expected in zip(gradient(data), apart, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    together = client.forward(data).result().logprobs
    for i, d in enumerate(data):
        np.testing.assert_allclose(together[i], client.forward([d]).result().logprobs[0], atol=1e-6)
    client.close()


def test_rank_8_of_the_catalogued_model_is_at_most_five_megabytes() -> None:
    smol = ModelConfig(
        vocab=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, max_len=8192, family="llama"
    )
    wanted = shapes(smol)
    size = sum(2 * 8 * (wanted[n][0] + wanted[n][1]) for n in targets_in(wanted, Lora(rank=8)))
    assert 4_500_000 < size < 5_000_000 and smol.parameters() == 134_515_008


def test_what_is_no_plain_adapter_of_this_base_is_refused(tmp_path: Path) -> None:
    base = chat_folder(tmp_path / "base")
    model = Adapted(Decoder.load(base), LORA, base=str(base))
    model.save_policy(tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "adapter_config.json").read_text())

    def said(**change: object) -> Path:
        (tmp_path / "policy" / "adapter_config.json").write_text(json.dumps(config | change))
        return tmp_path / "policy"

    with pytest.raises(CapabilityError, match="use_dora"):
        read_adapter(said(use_dora=True))
    with pytest.raises(CapabilityError, match="type 'IA3'"):
        read_adapter(said(peft_type="IA3"))
    with pytest.raises(UserError, match=r"the base of the adapter .* 'smolm2-135m'.*did you mean"):
        merged_folder(said(base_model_name_or_path="smolm2-135m"))
    with pytest.raises(UserError, match="does not fit"):
        merged_folder(said(r=5))
    with pytest.raises(UserError, match=r"an adapter of .* this run trains"):
        Adapted(Decoder.load(base), replace(LORA, rank=2), base=str(base)).load(said())
    (tmp_path / "policy" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged adapter"):
        ModelFolder.open(tmp_path / "policy")
    client = LocalClient(Decoder(CONFIG), threads=1)
    with pytest.raises(CapabilityError, match="no adapter"):
        client.publish("lora")
    client.close()


@pytest.mark.trl
def test_peft_computes_the_same_logprobs_and_gradients(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = chat_folder(tmp_path / "base")
    ours = Adapted(Decoder.load(base), Lora(rank=4, alpha=10.0, targets=TARGETS), base=str(base), seed=2)
    for master in ours.masters[1::2]:  # B, or half of the gradients would be zero
        master.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(master)))
    ours.changed()
    ours.save_policy(tmp_path / "adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True).float()
    client, data = LocalClient(ours, threads=1), make_data(seed=4)
    passed = client.forward_backward(data, "cross_entropy").result()
    total = torch.zeros(())
    for d, found in zip(data, passed.logprobs, strict=True):
        logits = theirs(torch.from_numpy(d.tokens)[None]).logits[0]
        logprobs = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(d.targets)[:, None])[:, 0]
        weights = torch.from_numpy(d.weights)
        assert np.abs(np.where(d.weights > 0, logprobs.detach().numpy() - found, 0)).max() < 1e-5
        total = total - (weights * logprobs).sum()
    total.backward()
    named = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert client._gradients is not None and set(named) == set(ours.names)
    for name, gradient in zip(ours.names, client._gradients, strict=True):
        torch.testing.assert_close(gradient, named[name], rtol=1e-4, atol=1e-5)
        assert gradient.abs().max() > 1e-4
    client.close()


def test_factors_are_named_as_peft_names_them() -> None:
    assert factor_names("model.layers.0.self_attn.q_proj.weight") == (
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    )
