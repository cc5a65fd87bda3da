"""A small run directory, written through the same doors as a real one: store, metrics, evaluations, summary.

Two environments, three policies, logs, evaluations on three splits and online training. Success depends on `colour`
(blue only ever comes up held-out) and not on `level`. What environments and policies say is hostile: markup, control
and direction characters, the end of a script element.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rollout.evaluate import tally
from rollout.store import Store
from rollout.tokenizers import BPETokenizer
from rollout.types import Branch, Episode, Group, Message, Node, PolicyVersion, RewardEntry, SamplingParams, Step, StopReason
from trainer.metrics import Metrics
from trainer.summary import Evaluation, save_evaluation, summarize, write_summary

ENVS = ("toy/lamp-v0", "toy/<b>bell</b>-v0")
STAGES = ("untrained", "imitation", "rl")
SPLITS = {"train": ("red", "green"), "validation": ("red", "green"), "heldout": ("blue", "red")}
HOSTILE = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=1"> & \u202egnp.exe\u0007 “naïve” 漢字'
PER_ENV = 24
STEPS = 8


def make_run(run_dir: Path, *, finished: bool = True) -> Path:
    tokenizer = BPETokenizer.train([HOSTILE, "set the lamp to red", "paint green blue level"] * 3, vocab_size=330)
    tokenizer.save(run_dir / "tokenizer")
    metrics = Metrics(run_dir)
    evaluations = {}
    with Store.create(run_dir / "store", tokenizer_hash=tokenizer.hash) as store:
        for i in range(12):
            store.append(_episode(tokenizer, "logs", 0, i, 0, ENVS[i % 2], "train", i, solved=i % 3 > 0, policy="logger"))
        for number, stage in enumerate(STAGES):
            if number:
                _train(tokenizer, store, metrics, stage, online=stage == "rl")
            evaluations[stage] = _evaluate(tokenizer, store, stage, number)
            for split, result in evaluations[stage].splits.items():
                metrics.write(stage, number and STEPS, STEPS * number, {"success": result.success}, kind=f"final/{split}")
            save_evaluation(run_dir, evaluations[stage])
            _policy(run_dir, stage, STEPS * number)
        lost = _episode(tokenizer, "eval/rl/heldout", 0, 999, 0, ENVS[0], "heldout", 999, solved=False)
        lost.stop, lost.error = StopReason.INFRA_ERROR, f"the worker died {HOSTILE}"
        store.append(lost)
    metrics.close()
    (run_dir / "run.json").write_text(json.dumps({"envfarm": 1, "run": "small", "note": HOSTILE}))
    if finished:
        wall = {"logs": 1.0, "train": 61.0, "rollout": 20.0, "eval": 9.0}
        agent = tally([_group(e) for e in _logs(run_dir)], "train", "logger").to_json()
        extra = {
            "run": f"small {HOSTILE}", "logging_agent": agent, "counters": {"trained_tokens": 12345},
            "wall_s": {"install": 40.0, "train": 82.0, "eval": 9.0, "parts": wall}, "incarnations": 1, "threads": 1,
        }  # fmt: skip
        write_summary(run_dir, summarize(evaluations, extra))
    return run_dir


def _logs(run_dir: Path) -> list[Episode]:
    return list(Store.open(run_dir / "store").episodes(stage="logs"))


def _group(episode: Episode) -> Group:
    return Group(id=episode.group, env=episode.env, instance_hash=episode.instance_hash, episodes=[episode])


def _train(tokenizer: BPETokenizer, store: Store, metrics: Metrics, stage: str, *, online: bool) -> None:
    for step in range(1, STEPS + 1):
        numbers = {"loss": 1.0 / step, "grad_norm": 0.5, "tokens": 100.0}
        if online:
            for index in range(4):
                for member in range(4):
                    solved = (index + member + step) % 4 > 1
                    store.append(
                        _episode(tokenizer, stage, step - 1, index, member, ENVS[index % 2], "train", 500 + step, solved=solved)
                    )
            numbers |= {"mismatch_mean": 1e-7, "mismatch_max": 1e-6, "zero_variance": 1.0, "groups_drawn": 4.0, "kl": 0.0}
            numbers |= {"staleness_max": 0.0, "rollout_s": 2.0 * step}
        metrics.write(stage, step, step, numbers)


def _evaluate(tokenizer: BPETokenizer, store: Store, stage: str, skill: int) -> Evaluation:
    splits = {}
    for split in SPLITS:
        groups = []
        for i in range(2 * PER_ENV):
            colour = SPLITS[split][i // 2 % 2]
            solved = colour == "red" and i % 7 < 3 * skill
            episode = _episode(tokenizer, f"eval/{stage}/{split}", 0, i, 0, ENVS[i % 2], split, i, solved=solved)
            store.append(episode)
            groups.append(_group(episode))
        splits[split] = tally(groups, split, "learner")
    return Evaluation(stage=stage, checksum=stage * 4, splits=splits)


def _policy(run_dir: Path, stage: str, number: int) -> None:
    folder = run_dir / "policies" / stage
    folder.mkdir(parents=True)
    about = {"seed": 3, "renderer": "compact", "version": {"policy": "learner", "number": number, "checksum": stage * 4}}
    (folder / "envfarm.json").write_text(json.dumps(about))


def _episode(
    tokenizer: BPETokenizer, stage: str, step: int, index: int, member: int, env: str, split: str, seed: int, *, solved: bool,
    policy: str = "learner",
) -> Episode:  # fmt: skip
    version = PolicyVersion(policy, 0, step, "c")
    shown, said = f"set the lamp {seed} {HOSTILE}", f"paint level {seed % 5} {HOSTILE}"
    params = {"colour": SPLITS[split][index // 2 % 2], "level": seed % 5, "serial": 1000 + 17 * seed, "shape": "round"}
    instance: dict[str, Any] = {
        "env": env, "spec_hash": "5" * 16, "split": split, "seed": seed, "params": params,
        "perturbation": {"observation.format": ("plain", "xml")[seed // 4 % 2], "transition.latency_s": 0.1 * (seed % 11)},
    }  # fmt: skip
    group = f"small/{stage}/{step}/{index}"
    episode = Episode(
        id=f"{group}/{member}.0", run="small", stage=stage, step=step, group=group, member=member, attempt=0, env=env,
        instance=instance, instance_hash=f"{env}/{split}/{seed}", split=split, seats={"agent": version}, index=index,
        steps=[Step(seat="agent", observation=shown, action=said, reward={"agent": float(solved)})], final_observation=HOSTILE,
        rewards=[RewardEntry(seat="agent", turn=0, component="env", value=float(solved))], reward={"agent": float(solved)},
        success={"agent": solved}, terminated=True, perturbations=[{"channel": "observation.distractors", "text": HOSTILE}],
    )  # fmt: skip
    if policy == "learner":
        episode.nodes = [_node(tokenizer, -1, "user", shown, None), _node(tokenizer, 0, "assistant", said, version)]
        episode.branches = [Branch(seat="agent", nodes=[0, 1])]
    return episode


def _node(tokenizer: BPETokenizer, parent: int, role: Any, text: str, version: PolicyVersion | None) -> Node:
    mark = tokenizer.special("<|act|>" if version else "<|obs|>")
    ids = [mark, *tokenizer.encode(text)]
    sampled = [False] + [version is not None] * (len(ids) - 1)
    return Node(
        parent=parent, seat="agent", turn=0, message=Message(role=role, content=text), token_ids=ids, mask=sampled,
        logprobs=[-0.25 * (i % 9) if m else 0.0 for i, m in enumerate(sampled)], version=version,
        sampling=SamplingParams(temperature=0.7, seed=1) if version else None,
    )  # fmt: skip
