"""What an engine must answer once it serves the weights that are being published: the trainer's own forward, on a few tokens.

A checksum says that the right bytes arrived. Whether what samples is made of them (packed, tied, cached anew) is seen in
what comes out.
"""

from __future__ import annotations

import torch

from envfarm.seeding import generator
from rollout.engines.base import Probe
from rollout.engines.torch.model import Decoder

LENGTH = 24


def probe_of(model: Decoder) -> Probe:
    """Tokens that depend on the model's vocabulary alone; their logprobs under its weights as they are now."""
    length = min(LENGTH, model.config.max_len - 2)
    drawn = generator("publish", "probe", model.config.vocab).integers(0, model.config.vocab, size=length)
    tokens_P = torch.from_numpy(drawn)
    with torch.inference_mode():
        logits_PV = model(tokens_P, torch.tensor([0, length])).float()
        logprobs_P = torch.log_softmax(logits_PV[:-1], dim=-1).gather(1, tokens_P[1:, None])[:, 0]
    return Probe(drawn.tolist(), logprobs_P.tolist(), exact=model.head_weight().dtype == torch.float32)
