"""One small store for all tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from rollout.build import make_renderer
from rollout.engines.torch.model import Decoder
from rollout.renderers.base import Renderer
from rollout.tokenizers import BPETokenizer
from rollout.types import Group
from tests.trainer.adapters import lamps


@dataclass(frozen=True)
class Farm:
    """Logs, a model that has imitated them for a moment, and what it sampled."""

    logs: Path
    store: Path
    groups: list[Group]
    tokenizer: BPETokenizer
    renderer: Renderer
    model: Decoder


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Farm:
    root = tmp_path_factory.mktemp("farm")
    episodes = lamps.logs(root / "logs")
    tokenizer = lamps.make_tokenizer(episodes)
    renderer = make_renderer("compact", tokenizer)
    model = lamps.imitate(episodes, renderer, vocab=tokenizer.vocab_size, steps=40)["model"]
    groups = lamps.sampled(root / "store", renderer, model)
    return Farm(root / "logs", root / "store", groups, tokenizer, renderer, model)
