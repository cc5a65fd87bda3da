"""The local client: what a row gives does not depend on its company, and the same calls give the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.errors import CapabilityError, StoreError
from envfarm.seeding import generator
from rollout.engines.torch.checkpoint import checksum
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from trainer.batch import Datum, datum, micro_batches
from trainer.client import AdamParams
from trainer.local import LocalClient

CONFIG = ModelConfig(vocab=48, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, max_len=64)


def make_data(rows: int = 9, seed: int = 0, *, temperature: float = 1.0) -> list[Datum]:
    rng = generator("test data", seed)
    data = []
    for i in range(rows):
        length = int(rng.integers(3, 30))
        mask = rng.random(length) < 0.5
        mask[-1] = True
        data.append(
            datum(
                rng.integers(0, CONFIG.vocab, length).tolist(),
                mask.tolist(),
                weight=1 / 7,
                logprobs=(-rng.random(length) * 4).tolist(),
                advantage=float(rng.normal()) + 0.01 * i,
                temperature=[temperature] * length,
            )
        )
    return data


def gradient(client: LocalClient, data: list[Datum], loss: str) -> list[torch.Tensor]:
    client.forward_backward(data, loss).result()
    found, client._gradients = client._gradients, None
    assert found is not None
    return found


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 99),
    max_tokens=st.integers(8, 400),
    loss=st.sampled_from(["cross_entropy", "ppo", "importance_sampling"]),
)
def test_packing_and_micro_batches_do_not_change_the_gradient(seed: int, max_tokens: int, loss: str) -> None:
    client = LocalClient(Decoder(CONFIG, seed=3).double(), threads=1)
    data = make_data(seed=seed)
    alone = [gradient(client, [d], loss) for d in data]
    summed = [torch.stack(parts).sum(0) for parts in zip(*alone, strict=True)]
    client.max_tokens = max_tokens
    shuffled = [data[i] for i in generator("shuffle", seed).permutation(len(data))]
    for ours, expected in zip(gradient(client, shuffled, loss), summed, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    client.close()


def test_padding_to_a_longer_neighbour_changes_no_logprob_by_more_than_rounding() -> None:
    data = make_data(rows=6)
    client = LocalClient(Decoder(CONFIG, seed=1).double())
    together = client.forward(data).result()
    for i, d in enumerate(data):
        alone = client.forward([d]).result()
        np.testing.assert_allclose(together.logprobs[i], alone.logprobs[0], atol=1e-7)
        assert (together.logprobs[i][d.weights == 0] == 0).all() and len(together.logprobs[i]) == len(d)
    assert together.tokens == sum(d.trained for d in data)
    client.close()


def test_logprobs_are_those_of_a_plain_forward_at_the_recorded_temperature() -> None:
    data, model = make_data(rows=3, temperature=0.5), Decoder(CONFIG, seed=2).double()
    client = LocalClient(model)
    output = client.forward(data, "importance_sampling").result()
    for d, ours in zip(data, output.logprobs, strict=True):
        logits = model(torch.from_numpy(d.tokens), torch.tensor([0, len(d)]))
        expected = torch.log_softmax(logits / 0.5, -1)[torch.arange(len(d)), torch.from_numpy(d.targets)]
        np.testing.assert_allclose(ours, np.where(d.weights != 0, expected.detach().numpy(), 0), atol=1e-6)
    client.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_steps_give_the_same_bits_at_any_count_of_threads(threads: int) -> None:
    assert train(threads) == train(2)


def train(threads: int, steps: int = 4) -> str:
    model = Decoder(CONFIG, seed=5)
    client = LocalClient(model, max_tokens=64, threads=threads)
    for step in range(steps):
        client.forward_backward(make_data(seed=step), "ppo")
        client.optim_step(AdamParams(learning_rate=1e-2, weight_decay=0.01))
    version = client.publish().result().version
    client.close()
    assert version.number == steps
    return version.checksum


def test_gradients_add_up_until_the_step() -> None:
    data = make_data()
    once, parts = Decoder(CONFIG, seed=5).double(), Decoder(CONFIG, seed=5).double()
    for model, pieces in ((once, [data]), (parts, [data[:4], data[4:]])):
        client = LocalClient(model)
        for piece in pieces:
            client.forward_backward(piece, "ppo")
        client.optim_step(AdamParams(learning_rate=1e-2)).result()
        client.close()
    for a, b in zip(once.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_adam_is_pytorchs() -> None:
    ours, theirs = Decoder(CONFIG, seed=5).double(), Decoder(CONFIG, seed=5).double()
    client = LocalClient(ours)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    reference = LocalClient(theirs)
    for step in range(3):
        data = make_data(seed=step)
        client.forward_backward(data, "ppo").result()
        client.optim_step(AdamParams(learning_rate=3e-3, weight_decay=0.1, grad_clip_norm=0.5)).result()
        reference.forward_backward(data, "ppo").result()
        assert reference._gradients is not None
        for p, g in zip(theirs.parameters(), reference._gradients, strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        reference._gradients = None
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    client.close()
    reference.close()


def test_a_state_saved_and_loaded_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    def step(client: LocalClient, seed: int) -> None:
        client.forward_backward(make_data(seed=seed), "ppo")
        client.optim_step(AdamParams(learning_rate=1e-2)).result()

    first = LocalClient(Decoder(CONFIG, seed=5))
    step(first, 0)
    saved = first.save_state(tmp_path / "state").result()
    step(first, 1)
    second = LocalClient(Decoder(CONFIG, seed=77), incarnation=1)
    assert second.load_state(tmp_path / "state").result() == saved
    step(second, 1)
    a, b = first.publish().result().version, second.publish().result().version
    assert a.checksum == b.checksum and (a.number, a.incarnation, b.incarnation) == (2, 0, 1)
    first.close()
    second.close()


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    client = LocalClient(Decoder(CONFIG))
    client.save_state(tmp_path / "state").result()
    weights = tmp_path / "state" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="checksum"):
        client.load_state(tmp_path / "state").result()
    weights.write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        client.load_state(tmp_path / "state").result()
    client.close()


def test_published_weights_are_a_copy_under_their_checksum() -> None:
    client = LocalClient(Decoder(CONFIG))
    published = client.publish().result()
    client.forward_backward(make_data(), "ppo")
    client.optim_step(AdamParams()).result()
    assert checksum(published.state) == published.version.checksum
    assert client.publish().result().version.checksum != published.version.checksum
    with pytest.raises(CapabilityError):
        client.publish("lora")
    client.close()


def test_rows_that_a_loss_cannot_take_are_named() -> None:
    client = LocalClient(Decoder(CONFIG))
    plain = [datum([1, 2, 3], [False, True, True])]
    with pytest.raises(ValueError, match="needs rows with logprobs"):
        client.forward_backward(plain, "ppo").result()
    with pytest.raises(ValueError, match="no loss 'dpo'"):
        client.forward_backward(plain, "dpo").result()
    with pytest.raises(ValueError, match="some rows of the batch carry logprobs"):
        client.forward_backward([*plain, *make_data(1)], "ppo").result()
    client.close()


def test_micro_batches_hold_each_trained_row_once_and_drop_what_follows_the_last_trained_token() -> None:
    short, nothing = datum([1, 2, 3, 4, 5], [False, True, False, False, False]), datum([1, 2], [True, False])
    data = [*(replace(d, logprobs=None, advantages=None, temperature=None) for d in make_data(20)), short, nothing]
    blocks = list(micro_batches(data, max_tokens=50))
    assert sorted(i for b in blocks for i in b.rows) == list(range(21))  # the last has nothing to train
    for block in blocks:
        lengths = (block.cu_seqlens[1:] - block.cu_seqlens[:-1]).tolist()
        assert max(lengths) * len(lengths) <= 50 or len(lengths) == 1
    lengths_of = {i: n for b in blocks for i, n in zip(b.rows, b.cu_seqlens.diff().tolist(), strict=True)}
    assert lengths_of[20] == 1
