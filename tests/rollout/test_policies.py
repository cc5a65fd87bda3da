"""A served model plays from text alone, and a model folder plays through the embedded engine, the same way every time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rollout.build import ModelFolder
from rollout.engines.base import Capabilities, Generation
from rollout.engines.torch.checkpoint import checksum
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.model import Decoder
from rollout.policies import MALFORMED_CALL, ChatPolicy
from rollout.tokenizers import BPETokenizer
from rollout.types import Message, PolicyVersion, SamplingParams, StopReason
from tests.rollout.scenes import HashEngine
from tests.rollout.test_cli import answer, toys  # noqa: F401 - the fixture
from tests.rollout.test_episode import TOKENIZER, play


class Chat(HashEngine):
    """Says its replies in order; keeps what it was asked."""

    def __init__(self, *replies: str, finish: Any = "stop"):
        super().__init__(TOKENIZER, replies)
        self.capabilities = Capabilities()
        self.asked: list[tuple[list[Message], list[str], int]] = []
        self.finish = finish

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], params: SamplingParams, *, policy: str = ""
    ) -> Generation:
        self.asked.append((list(messages), [t["name"] for t in tools], params.seed))
        text = self.replies[(len(self.asked) - 1) % len(self.replies)]
        return Generation([], [], self.finish, PolicyVersion(policy), text=text)


def test_a_served_model_is_shown_the_conversation_and_the_tools() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"number": 1}}\n</tool_call>'
    engine = Chat("add 1", call, "<tool_call>{", "add 1")
    episode = play({"agent": ChatPolicy(PolicyVersion("served"), engine)}, index=3)
    assert episode.nodes == [] and episode.ok
    assert [s.action for s in episode.steps[:3]] == ["add 1", "", "<tool_call>{"]
    assert [[c.name for c in s.tool_calls] for s in episode.steps[:3]] == [[], ["add"], [MALFORMED_CALL]]
    messages, tools, _ = engine.asked[2]
    assert tools == ["add"] and [m.role for m in messages] == ["user", "assistant", "user", "assistant", "tool"]
    assert messages[0].content == episode.steps[0].observation and messages[3].tool_calls[0].name == "add"
    assert len({seed for _, _, seed in engine.asked}) == len(engine.asked)
    assert episode.malformed == sum(s.malformed for s in episode.steps) >= 1


def test_a_served_reply_that_was_cut_off_ends_the_episode() -> None:
    episode = play({"agent": ChatPolicy(PolicyVersion("served"), Chat("add 1", finish="length"))})
    assert episode.stop is StopReason.TOKEN_LIMIT and episode.steps == []


def test_a_model_folder_is_evaluated_as_it_says_and_gives_the_same_figures_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "policies" / "rl"
    tokenizer = BPETokenizer.train(["adjust red 3", "switch", "note", "Lamp none level 0", "kitchen attic"] * 4, vocab_size=300)
    config = ModelConfig(vocab=tokenizer.vocab_size, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=48, max_len=512)
    decoder = Decoder(config, seed=1)
    decoder.save(folder)
    tokenizer.save(folder)
    about = {
        "renderer": "compact", "seed": 5, "sampling": {"max_tokens": 6},
        "version": {"number": 3, "checksum": checksum(decoder.state_dict())},
        "evaluation": {
            "splits": {"heldout": 4}, "temperature": 1.0,
            "environments": [{"id": "toy/lamp-v0", "weight": 1.0, "setting": {"rung": 0}}],
        },
    }  # fmt: skip
    (folder / "envfarm.json").write_text(json.dumps(about))
    assert ModelFolder.open(folder).version("p") == PolicyVersion("p", 0, 3, checksum(decoder.state_dict()))
    first = answer(capsys, "eval", folder)["splits"]
    again = answer(capsys, "eval", tmp_path / "run", "--workers", "1")["splits"]
    assert first == again, "the run's newest policy is that folder, and sampling depends on seed and instance alone"
    assert first["heldout"]["episodes"] == 4 and first["heldout"]["by_env"].keys() == {"toy/lamp-v0"}
