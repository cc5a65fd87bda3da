"""One small store for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rollout.build import make_renderer
from rollout.renderers.base import Renderer
from rollout.tokenizers import BPETokenizer
from rollout.types import Group

if TYPE_CHECKING:
    from rollout.engines.torch.model import Decoder


@dataclass(frozen=True)
class Farm:
    """Logs, a model that has imitated them for a moment, and what it sampled."""

    logs: Path
    store: Path
    groups: list[Group]
    tokenizer: BPETokenizer
    renderer: Renderer
    model: Decoder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On models this small, two cores that share an operation mostly wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Farm:
    from tests.trainer.adapters import lamps  # with torch: the environments of verifiers have none

    root = tmp_path_factory.mktemp("farm")
    episodes = lamps.logs(root / "logs")
    tokenizer = lamps.make_tokenizer(episodes)
    renderer = make_renderer("compact", tokenizer)
    model = lamps.imitate(episodes, renderer, vocab=tokenizer.vocab_size, steps=40)["model"]
    groups = lamps.sampled(root / "store", renderer, model)
    return Farm(root / "logs", root / "store", groups, tokenizer, renderer, model)
