"""The peer of `benchmarks.training`: TRL's GRPOTrainer, one step for each line of rows on stdin. Runs in TRL's own
environment and imports nothing of ours.

    python _trl_grpo.py MODEL_FOLDER THREADS
"""

import json
import sys
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
BATCH, GROUP = 64, 8
vocab = {f"<{i}>": i for i in range(512)}
words = Tokenizer(models.WordLevel(vocab, unk_token="<0>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", eos_token="<1>")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
current: list[dict] = []


class Clock(TrainerCallback):
    """Waits for rows before a step, and says how long it took."""

    def on_step_begin(self, args, state, control, **kwargs):
        global current
        line = sys.stdin.readline()
        if not line:
            control.should_training_stop = True
            sys.exit(0)
        current = json.loads(line)
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        print(f"@seconds {time.perf_counter() - self.began}", flush=True)


def rollout(prompts, trainer):
    return {
        "prompt_ids": [r["prompt"] for r in current],
        "completion_ids": [r["completion"] for r in current],
        "logprobs": [[-6.0 * m for m in r["mask"]] for r in current],
        "env_mask": [r["mask"] for r in current],
        "reward": [r["reward"] for r in current],
    }


def reward(completions, reward, **kwargs):
    return reward


config = GRPOConfig(
    output_dir=folder + "/trl", use_cpu=True, bf16=False, report_to=[], save_strategy="no", dataloader_pin_memory=False,
    per_device_train_batch_size=BATCH, num_generations=GROUP, max_steps=100_000, learning_rate=1e-4, beta=0.0,
    gradient_checkpointing=False, logging_strategy="no", disable_tqdm=True, max_completion_length=512,
    steps_per_generation=1, scale_rewards="none", loss_type="dr_grpo",
)  # fmt: skip
trainer = GRPOTrainer(
    model=model, args=config, processing_class=tokenizer, reward_funcs=reward, rollout_func=rollout,
    train_dataset=Dataset.from_dict({"prompt": ["<2> <3>"] * 4096}), callbacks=[Clock()],
)  # fmt: skip
print("@ready", flush=True)
trainer.train()
