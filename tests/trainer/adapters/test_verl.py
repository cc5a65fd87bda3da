"""The agent loop inside verl's own workers, and what it gives against our own rollouts of the same instances."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from envfarm.errors import CapabilityError, RunHaltedError, UserError
from envfarm.registry import default_registry
from rollout.advantages import advantages
from rollout.engines.base import Capabilities, Generation
from rollout.export.verl import PROMPTS, padded, write_instances
from rollout.plan import GroupRequest, RunPlan
from rollout.policies import EnginePolicy
from rollout.rows import Row, rows_of
from rollout.types import Group, PolicyVersion, SamplingParams

pytestmark = [pytest.mark.verl, pytest.mark.timeout(900)]

TOYS = Path(__file__).resolve().parents[2] / "toy"
GROUPS, MEMBERS = 4, 4
SETTING = {"perturb": "off", "rung": 1}
LENGTHS = ["data.max_prompt_length=1200", "data.max_response_length=700"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verl") / "lamp"
    spec = default_registry([str(TOYS)]).get("toy/lamp-v0")
    assert write_instances(spec, folder, count=GROUPS, first=20, setting=SETTING) == GROUPS
    agent = (folder / "agent.yaml").read_text()
    (folder / "agent.yaml").write_text(agent + f"  env_paths: [{TOYS}]\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.trainer.adapters.verl_server import model_folder

    return str(model_folder(tmp_path_factory.mktemp("model")))


def configuration(data: Path, model: str, *more: str) -> Any:
    """verl's own trainer configuration, as its command line would compose it."""
    import verl
    from hydra import compose, initialize_config_dir

    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    overrides = [
        "actor_rollout_ref.rollout.name=vllm", f"actor_rollout_ref.model.path={model}",
        "+actor_rollout_ref.model.override_config.attn_implementation=eager",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={data / 'agent.yaml'}",
        f"actor_rollout_ref.rollout.n={MEMBERS}",
        "data.filter_overlong_prompts=True", f"+data.cache_dir={data / 'cache'}", *LENGTHS, *more,
    ]  # fmt: skip
    with initialize_config_dir(config_dir=folder, version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def batch_of(data: Path, config: Any) -> Any:
    """The dataset through verl's loader, each prompt `rollout.n` times, as its trainer does it."""
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    dataset = RLHFDataset(str(data / PROMPTS), tokenizer, config.data)
    assert len(dataset) == GROUPS
    batch = DataProto.from_single_dict(collate_fn([dataset[i] for i in range(len(dataset))]))
    batch.non_tensor_batch["uid"] = np.array([f"group {i}" for i in range(len(dataset))], dtype=object)
    batch = batch.repeat(MEMBERS, interleave=True)
    batch.non_tensor_batch["priority"] = np.arange(len(batch), dtype=np.int64)
    return batch


class SameServer:
    """The scripted server as one of our engines: what a group's member is told depends on its place alone, as there."""

    capabilities = Capabilities(token_ids=True, logprobs=True, seeds=True, versions=True)

    def __init__(self, model: str):
        from rollout.tokenizers import HFTokenizer

        self.tokenizer = HFTokenizer(model)

    async def start(self) -> None:
        pass

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        from tests.trainer.adapters.verl_server import scripted_reply

        group, member = session.split("/")[-3:-1]
        ids, logprobs = scripted_reply(self.tokenizer, prompt_ids, int(group) * MEMBERS + int(member.partition(".")[0]))
        most = params.max_tokens
        return Generation(ids[:most], logprobs[:most], "stop" if len(ids) <= most else "length", PolicyVersion(policy))

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        raise CapabilityError("scripted")

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def ours(model: str) -> list[Row]:
    """The same 16 episodes by our own scheduler, advantages filled in."""
    from envfarm.worker.pool import WorkerPool
    from rollout.build import make_renderer
    from rollout.scheduler import Rollouts

    spec = default_registry([str(TOYS)]).get("toy/lamp-v0")
    engine = SameServer(model)
    policy = EnginePolicy(PolicyVersion("learner"), engine, make_renderer("chatml", engine.tokenizer))
    requests = [
        GroupRequest(
            env=spec.id, instance=spec.instance("train", 20 + i, SETTING), size=MEMBERS, stage="online", step=0, index=i,
            seats={"agent": "learner"}, sampling=SamplingParams(max_tokens=48),
        )
        for i in range(GROUPS)
    ]  # fmt: skip

    async def play() -> list[Group]:
        pool = WorkerPool([spec])
        await pool.start()
        try:
            async with Rollouts(RunPlan(run="ours", seed=0, specs={spec.id: spec}), pool, {"learner": policy}) as rollouts:
                return await rollouts.run(requests)
        finally:
            await pool.close()

    groups = asyncio.run(play())
    given = advantages(groups)
    rows = [row for g in groups for e in g.episodes for row in rows_of(e)]
    for row in rows:
        row.advantage = given.get(row.episode_id, row.seat)
    return rows


@pytest.fixture(scope="module")
def played(data: Path, model: str) -> Any:
    """16 episodes by verl's agent-loop worker, and what its server was asked."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    from tests.trainer.adapters.verl_server import ScriptedServer

    config = configuration(data, model)
    server = ScriptedServer(config, model)
    set_max_tokens(data, 48)
    worker = AgentLoopWorker(config, server)
    batch = batch_of(data, config)
    return SimpleNamespace(output=asyncio.run(worker.generate_sequences(batch)), server=server, uid=batch.non_tensor_batch["uid"])


def set_max_tokens(data: Path, count: int) -> None:
    path = data / "agent.yaml"
    path.write_text("".join(f"  max_tokens: {count}\n" if "max_tokens" in line else line for line in path.open()))


def test_rows_of_verl_are_our_rows(played: Any, ours: list[Row]) -> None:
    """Ids, masks and logprobs to the bit; padding, rewards and position ids as verl's own worker lays them out."""
    got = played.output.batch
    assert len(ours) == len(got) == GROUPS * MEMBERS
    expected = padded(ours, prompt_length=1200, response_length=700)
    pad = got["prompts"][0, 0].item()
    for name in ("prompts", "responses", "input_ids"):
        kept = expected["attention_mask"].astype(bool)
        kept = kept if name == "input_ids" else kept[:, :1200] if name == "prompts" else kept[:, 1200:]
        assert np.array_equal(np.where(kept, expected[name], pad), got[name].numpy()), name
    for name in ("response_mask", "attention_mask", "position_ids", "rollout_log_probs", "rm_scores"):
        assert np.array_equal(expected[name], got[name].numpy()), name


def test_model_tokens_alone_are_masked(played: Any) -> None:
    """What the server sampled, and nothing else, is trained; what it was asked with is what stands before."""
    from rollout.tokenizers import HFTokenizer

    tokenizer = HFTokenizer(played.server.model)
    got, turns = played.output.batch, played.output.non_tensor_batch["__num_turns__"]
    by_episode: dict[str, list[dict[str, Any]]] = {}
    for request in played.server.requests:
        by_episode.setdefault(request["id"], []).append(request)
    assert len(by_episode) == GROUPS * MEMBERS and max(turns) >= 6
    for row in range(len(got)):
        ids = got["input_ids"][row][got["attention_mask"][row].bool()].tolist()
        assert ids[-1] == tokenizer.special("<|im_end|>") or 48 in _run_lengths(got["response_mask"][row].tolist())
        longest = max((r["prompt"] for rs in by_episode.values() for r in rs if r["prompt"] == ids[: len(r["prompt"])]), key=len)
        assert got["response_mask"][row].sum().item() >= len(ids) - len(longest) > 0
    assert all(r["sampling"]["stop_token_ids"] == [tokenizer.special("<|im_end|>")] for r in played.server.requests)


def _run_lengths(mask: list[int]) -> set[int]:
    return {len(run) for run in "".join(map(str, mask)).split("0") if run}


def test_rewards_and_what_goes_with_them(played: Any) -> None:
    said = played.output.non_tensor_batch
    rewards = played.output.batch["rm_scores"].sum(-1)
    assert {0.0, 1.0} <= set(rewards.tolist())
    assert said["acc"].tolist() == [float(r >= 1.0) for r in rewards.tolist()]
    assert set(said["max_global_steps"]) == {7} and {"token_limit", "terminated"} <= set(said["envfarm_stop"])
    assert played.output.meta_info["reward_extra_keys"] == ["acc", "malformed"] and max(said["malformed"]) >= 1.0
    for i in range(0, len(rewards), MEMBERS):  # a group shares its instance, groups do not
        assert len(set(said["envfarm_instance"][i : i + MEMBERS])) == 1
    assert len(set(said["envfarm_instance"])) == GROUPS


def test_same_tokens_and_advantages_and_loss(played: Any, ours: list[Row]) -> None:
    """verl's GRPO advantages and clipped loss on its rows against `rollout.advantages` and `trainer.losses` on ours."""
    import torch
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_policy_loss_vanilla
    from verl.workers.config import FSDPActorConfig

    from trainer.losses import LossConfig, clipped

    got = played.output.batch
    mask = got["response_mask"].float()
    theirs, _ = compute_grpo_outcome_advantage(got["rm_scores"], mask, played.uid, norm_adv_by_std_in_grpo=False)
    trained = sum(row.trained for row in ours)
    assert int(mask.sum()) == trained > 200
    total = sum(row.advantage * row.trained for row in ours)
    assert abs(total) > 1.0 and float((theirs.double() * mask).sum()) == pytest.approx(total, abs=1e-4)
    assert any(row.advantage != 0 for row in ours)

    sampled = got["rollout_log_probs"]
    noise = torch.from_numpy(np.random.default_rng(5).normal(0, 0.3, sampled.shape)).float()
    logprobs = (sampled + noise).requires_grad_()
    config = FSDPActorConfig(
        strategy="fsdp", clip_ratio=0.2, clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1e6, ppo_mini_batch_size=16,
        ppo_micro_batch_size_per_gpu=16, rollout_n=MEMBERS,
    )  # fmt: skip
    loss, metrics = compute_policy_loss_vanilla(sampled, logprobs, theirs, mask, "token-mean", config)
    loss.backward()

    at = mask.bool()
    flat = (sampled + noise)[at].clone().requires_grad_()
    ours_N = torch.cat([torch.full((row.trained,), row.advantage) for row in ours]).float()
    behaviour_N = torch.cat([torch.from_numpy(row.logprobs[row.mask]) for row in ours]).float()
    terms = clipped(
        flat, sampled_N=behaviour_N, advantages_N=ours_N, weights_N=torch.full_like(flat, 1.0 / trained),
        config=LossConfig(clip_low=0.1, clip_high=0.3),
    )  # fmt: skip
    terms.loss_N.sum().backward()
    assert loss.item() == pytest.approx(terms.loss_N.sum().item(), abs=1e-5)
    assert metrics["actor/pg_clipfrac"] > 0.05
    assert logprobs.grad is not None and flat.grad is not None
    assert torch.allclose(logprobs.grad[at], flat.grad, atol=1e-6) and float(flat.grad.abs().max()) > 1e-4


def test_response_budget_and_first_observation(data: Path, model: str) -> None:
    """An episode ends where the response is full; a first observation that does not fit is refused, never cut."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    from tests.trainer.adapters.verl_server import ScriptedServer

    set_max_tokens(data, 0)
    config = configuration(data, model, "data.max_response_length=60")
    server = ScriptedServer(config, model)
    batch = batch_of(data, config)
    output = asyncio.run(AgentLoopWorker(config, server).generate_sequences(batch))
    assert output.batch["responses"].shape[1] == 60
    assert {"context_limit", "token_limit"} & set(output.non_tensor_batch["envfarm_stop"])
    assert all(r["sampling"]["max_tokens"] <= 60 for r in server.requests)

    config = configuration(data, model, "data.max_prompt_length=16")
    with pytest.raises(UserError, match=r"max_prompt_length is 16"):
        asyncio.run(AgentLoopWorker(config, ScriptedServer(config, model)).generate_sequences(batch))


def test_verls_manager_over_ray(data: Path, model: str, played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`AgentLoopManager` with its Ray actors: the same batch gives the same tokens, in other processes."""
    import ray
    from verl.experimental.agent_loop.agent_loop import AgentLoopManager

    from tests.trainer.adapters.verl_server import ScriptedServer

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    set_max_tokens(data, 48)
    config = configuration(data, model, "actor_rollout_ref.rollout.agent.num_workers=2")
    batch = batch_of(data, config)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        manager = AgentLoopManager.create(config=config, llm_client=ScriptedServer(config, model))
        output = manager.generate_sequences(batch)
    finally:
        ray.shutdown()
    for name in ("input_ids", "attention_mask", "response_mask", "rollout_log_probs", "rm_scores"):
        assert np.array_equal(output.batch[name].numpy(), played.output.batch[name].numpy()), name
    assert output.meta_info["timing"]["agent_loop/num_preempted/max"] == 0


def test_what_breaks_is_played_again_and_then_stops_the_run(model: str, tmp_path: Path) -> None:
    """An environment whose code raises gives no row: neither reward 0 nor a row without trained tokens."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    from tests.trainer.adapters.verl_server import ScriptedServer

    home, data = tmp_path / "environment", tmp_path / "data"
    home.mkdir()
    yaml, code = (TOYS / "lamp.yaml").read_text(), (TOYS / "lamp.py").read_text()
    (home / "faulty.yaml").write_text(yaml.replace("toy/lamp-v0", "toy/faulty-v0").replace("./lamp.py", "./faulty.py"))
    assert 'return "The lamp shines."' in code
    (home / "faulty.py").write_text(code.replace('return "The lamp shines."', 'raise RuntimeError("no power")'))
    spec = default_registry([home]).get("toy/faulty-v0")
    write_instances(spec, data, count=GROUPS, setting=SETTING)
    with (data / "agent.yaml").open("a") as agent:
        agent.write(f"  env_paths: [{home}]\n  attempts: 2\n")
    config = configuration(data, model)
    server = ScriptedServer(config, model)
    with pytest.raises(RunHaltedError, match=r"2 attempts at one episode broke; the last one: .*no power"):
        asyncio.run(AgentLoopWorker(config, server).generate_sequences(batch_of(data, config)))


@pytest.mark.box
def test_a_box_inside(model: str, tmp_path: Path) -> None:
    """coding/shell: what the model types runs in bubblewrap, below verl's worker."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    from rollout.tokenizers import HFTokenizer
    from tests.trainer.adapters.verl_server import Typist

    spec = default_registry().get("coding/shell-v0")
    write_instances(spec, tmp_path, count=GROUPS, setting={"rung": 0, "perturb": "off"})
    config = configuration(tmp_path, model, "data.max_prompt_length=4000", "data.max_response_length=1500")
    batch = batch_of(tmp_path, config)[:2]
    output = asyncio.run(AgentLoopWorker(config, Typist(config, model)).generate_sequences(batch))
    said = output.non_tensor_batch
    assert set(said["envfarm_stop"]) <= {"terminated", "agent_stopped", "turn_limit", "context_limit"}
    ids = output.batch["responses"][0][output.batch["attention_mask"][0, 4000:].bool()].tolist()
    assert "forty-two is 42" in HFTokenizer(model).decode(ids)


def test_rows_that_are_not_ours(model: str, data: Path) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    from tests.trainer.adapters.verl_server import ScriptedServer

    config = configuration(data, model)
    worker = AgentLoopWorker(config, ScriptedServer(config, model))
    batch = batch_of(data, config)
    foreign = batch[:1]
    foreign.non_tensor_batch["extra_info"] = np.array([{"index": 0, "split": "train"}], dtype=object)
    with pytest.raises(UserError, match="names no environment"):
        asyncio.run(worker.generate_sequences(foreign))
    old = batch[:1]
    extra = dict(old.non_tensor_batch["extra_info"][0])
    extra["instance"] = extra["instance"].replace('"spec_hash":"', '"spec_hash":"0')
    old.non_tensor_batch["extra_info"] = np.array([extra], dtype=object)
    with pytest.raises(UserError, match="another version of toy/lamp-v0"):
        asyncio.run(worker.generate_sequences(old))


def test_the_page_as_it_stands(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/trainers/verl.md: datasets are written, and verl's configuration knows every key."""
    from rollout.export.verl import main
    from tests.trainer.adapters.pages import commands

    monkeypatch.chdir(tmp_path)
    first = [shlex.split(c) for c in commands("verl", "Train with verl")]
    for words in first:
        if words[:3] == ["python", "-m", "rollout.export.verl"]:
            main([{"1000": "5", "200": "3"}.get(w, w) for w in words[3:]])
    (command,) = [shlex.split(c) for c in commands("verl", "The command")]
    assert command[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    given = [w.replace("=MODEL", f"={model}").replace("$PWD", str(tmp_path)) for w in command[3:]]
    config = configuration(tmp_path / "data" / "train", model, *given)
    assert config.actor_rollout_ref.rollout.n == 8 and config.algorithm.norm_adv_by_std_in_grpo is False
    for files, count in ((config.data.train_files, 5), (config.data.val_files, 3)):
        assert pq.read_metadata(files).num_rows == count
    assert Path(config.actor_rollout_ref.rollout.agent.agent_loop_config_path).is_file()
