"""A scripted stand-in for verl's servers, and a model folder that verl can open. Imported inside the environment of verl only."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from transformers import Qwen2Config
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from envfarm.seeding import generator
from rollout.tokenizers import BPETokenizer, HFTokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model_folder(folder: Path) -> Path:
    """Configuration and tokenizer without weights: all that rollouts need of a model here."""
    tokenizer = BPETokenizer.train(["Lamp in the kitchen: red at level 1, then on. adjust green 2 switch"], vocab_size=300)
    tokenizer.save(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>", '
        f'"clean_up_tokenization_spaces": false, "chat_template": {json.dumps(TEMPLATE)}}}\n'
    )
    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


class ScriptedServer(LLMServerClient):
    """Answers lamps: mostly right, now and then wrong, malformed or endless, by a hash of prompt and priority."""

    def __init__(self, config: Any, model: str):
        super().__init__(config)
        self.model, self.requests = model, list[dict[str, Any]]()

    async def generate(  # type: ignore[override]
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any
    ) -> TokenOutput:
        await asyncio.sleep(0)
        self.requests.append({"id": request_id, "prompt": list(prompt_ids), "sampling": dict(sampling_params)})
        ids, logprobs = scripted_reply(HFTokenizer(self.model), prompt_ids, priority)
        most = sampling_params["max_tokens"]
        return TokenOutput(
            token_ids=ids[:most], log_probs=logprobs[:most], stop_reason="completed", num_preempted=0,
            extra_fields={"global_steps": 7, "min_global_steps": 7, "max_global_steps": 7},
        )  # fmt: skip


def scripted_reply(tokenizer: HFTokenizer, prompt_ids: list[int], priority: int) -> tuple[list[int], list[float]]:
    """A pure function: what is said after `prompt_ids`, stop token included, and how likely that was."""
    digest = hashlib.sha256(repr((prompt_ids, priority)).encode()).digest()
    text = tokenizer.decode(prompt_ids)
    goal = re.search(r": (\w+) at level (\d)", text)
    assert goal is not None, text
    set_to = re.findall(r"colour: (\w+)\nlevel: (\d)", text)[-1]
    said = "switch" if set_to == goal.groups() else f"adjust {goal[1]} {goal[2]}"
    said = {0: "adjust white 9", 1: "what now?", 2: "note " + "x " * 90}.get(digest[0] % 10, said)
    ids = [*tokenizer.encode(said), tokenizer.special("<|im_end|>")]
    rng = generator("logprobs", int.from_bytes(digest[:4], "little"))
    return ids, [-float(x) for x in rng.random(len(ids))]


class Typist(ScriptedServer):
    """Types one shell command, again and again."""

    async def generate(  # type: ignore[override]
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any
    ) -> TokenOutput:
        await asyncio.sleep(0)
        tokenizer = HFTokenizer(self.model)
        ids = [*tokenizer.encode("echo forty-two is $((6 * 7))"), tokenizer.special("<|im_end|>")]
        ids = ids[: sampling_params["max_tokens"]]
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed", num_preempted=0)
