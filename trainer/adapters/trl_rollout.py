"""`rollout_func` for TRL's GRPOTrainer: our environments, many turns, the trainer's own weights, exact tokens.

    from trainer.adapters.trl import environment_reward, make_rollout_func

    rollout = make_rollout_func(["games/maze-v0"], max_tokens=16)
    trainer = GRPOTrainer(
        model, reward_funcs=environment_reward, rollout_func=rollout, train_dataset=rollout.dataset(512), args=GRPOConfig(...)
    )
    trainer.train()
    rollout.close()

A prompt names an instance; the trainer repeats it `num_generations` times: a group. What comes back per prompt is one
episode: the tokens up to the first reply, everything after it, the logprobs of what was really sampled, and `env_mask`,
1 where the model spoke. Temperature and top_p are the trainer's. An episode that is not ok has no reward (None) and trains
nothing. Seeds depend on the step and the place in the batch, never on time: a run repeats.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from envfarm.errors import CapabilityError, UserError
from envfarm.registry import default_registry
from envfarm.worker.pool import WorkerPool
from rollout.acting import specs_of
from rollout.build import ModelFolder, build_policies
from rollout.engines.torch.checkpoint import checksum
from rollout.plan import GroupRequest
from rollout.policies import EnginePolicy, Policy
from rollout.rows import rows_of
from rollout.run import RolloutFile, read_run
from rollout.run_check import resolve
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import Episode, PolicyVersion, SamplingParams
from trainer.adapters.sessions import Sessions
from trainer.adapters.trl_engine import LEARNER, make_engine, model_folder, weights
from trainer.adapters.trl_instances import Address, Source, dataset, draw

REWARD = "environment_reward"


def environment_reward(environment_reward: Sequence[float | None], **_: Any) -> list[float | None]:
    """The reward function that goes with a rollout function; None where an episode has no reward."""
    return list(environment_reward)


class RolloutFunc:
    """`rollout_func(prompts, trainer)`. Workers and the engine start with the first call."""

    def __init__(self, run: RolloutFile, source: Source, policies: Mapping[str, Policy], *, renderer: str, store: Path | None):
        self.run, self.source, self.renderer = run, source, renderer
        self.seats = {c.spec.id: _only_seat(c.spec.id, c.seats, run.learner) for c in source.choices}
        self.episodes: list[Episode] = []
        """Of the last call, in the order of its prompts."""
        self._others, self._store_path = dict(policies), store
        self._loop, self._stack = Sessions(), AsyncExitStack()
        self._rollouts: Rollouts | None = None
        self._place: tuple[str, int] = ("", -1)
        self._next = 0  # group index within the step

    def dataset(self, count: int, *, split: str = "train") -> Any:
        """`count` prompts, each an instance. Raises: UserError, MissingDependencyError."""
        return dataset(draw(self.source.choices, count, split=split, seed=self.run.seed), str)

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """Raises: UserError where a prompt names no instance or the trainer asks for what no engine here does,
        RunHaltedError where too many episodes failed."""
        requests = self._requests(prompts, trainer)
        if self._rollouts is None:
            self._loop.wait(self._open(trainer))
            atexit.register(self.close)
        else:
            self._publish(trainer)
        assert self._rollouts is not None
        groups = self._loop.wait(self._rollouts.run(requests))
        self.episodes = [e for group in groups for e in group.episodes]
        columns = [_columns(e, self.seats[e.env], trainer.processing_class.eos_token_id) for e in self.episodes]
        return {key: [c[key] for c in columns] for key in columns[0]}

    def close(self) -> None:
        """End workers and engine. Idempotent; done when the process ends, too."""
        atexit.unregister(self.close)
        if self._rollouts is not None:
            self._rollouts = None
            self._loop.wait(self._stack.aclose())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inside.

    def _requests(self, prompts: Sequence[Any], trainer: Any) -> list[GroupRequest]:
        stage, step = _stage(trainer), int(trainer.state.global_step)
        if self._place != (stage, step):
            self._place, self._next = (stage, step), 0
        sampling = self._sampling(trainer)
        seated = {c.spec.id: c.seats for c in self.source.choices}
        made = []
        for text, members in groupby(_text(p) for p in prompts):
            address = Address.parse(text)
            made.append(GroupRequest(
                env=address.env, instance=self.source.instance(address), size=len(list(members)), stage=stage, step=step,
                index=self._next, seats=seated[address.env], sampling=sampling, split=address.split,
            ))  # fmt: skip
            self._next += 1
        return made

    def _sampling(self, trainer: Any) -> SamplingParams:
        args = trainer.args
        asked = {"top_k": args.top_k or None, "min_p": args.min_p or None}
        asked["repetition_penalty"] = args.repetition_penalty if args.repetition_penalty != 1.0 else None
        for name, value in asked.items():
            if value is not None:
                raise UserError(f"GRPOConfig({name}={value}): episodes are sampled by temperature and top_p alone; leave it out")
        return SamplingParams(temperature=args.temperature, top_p=args.top_p, max_tokens=self.run.sampling.max_tokens)

    async def _open(self, trainer: Any) -> None:
        try:
            await self._enter(self._stack, trainer)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _enter(self, stack: AsyncExitStack, trainer: Any) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="envfarm-trl-")))
        version = model_folder(trainer, folder)
        engine = make_engine(trainer, folder, version, max_in_flight=self.run.engine.max_in_flight)
        learner = EnginePolicy(version, engine, ModelFolder.open(folder).renderer(self.renderer))
        specs = self.source.specs
        pool = WorkerPool(list(specs.values()), backend=self.run.backend, workers=self.run.workers)
        stack.push_async_callback(pool.close)
        await pool.start()
        store = None if self._store_path is None else stack.enter_context(Store.open_or_create(self._store_path))
        policies = {**self._others, self.run.learner: learner}
        self._rollouts = await stack.enter_async_context(Rollouts(self.run.plan(specs), pool, policies, store))

    def _publish(self, trainer: Any) -> None:
        """Act with the weights as they are now, where they have changed."""
        assert self._rollouts is not None
        state = weights(trainer)
        policy = self._rollouts.policies[self.run.learner]
        found = checksum(state)
        if found != policy.version.checksum:
            version = PolicyVersion(LEARNER, 0, int(trainer.state.global_step), found)
            assert isinstance(policy, EnginePolicy)
            self._loop.wait(policy.engine.update_weights(version, state))
            policy.version = version


def make_rollout_func(
    environments: str | Path | Sequence[str], *, setting: Mapping[str, Any] | None = None, renderer: str | None = None,
    max_tokens: int = 64, episode_tokens: int = 0, seed: int = 0, workers: int = 1, max_in_flight: int = 64,
    backend: str = "bubblewrap", store: str | Path | None = None,
) -> RolloutFunc:  # fmt: skip
    """A rollout function over a run file (its environments, settings, seats, sampling), or over environments by id.

    `max_tokens` bounds one reply, `episode_tokens` all replies of an episode (0: no bound); `max_completion_length` of
    the trainer bounds neither. With `store`, a folder, every episode is kept as in any other run.
    Raises: UserError (RunFileError with the place), UnknownIdError.
    """
    registry = default_registry()
    if isinstance(environments, (str, Path)) and Path(environments).is_file():
        run, source = read_run(environments, RolloutFile)
        specs = resolve(run, source, registry)
        renderer = renderer or run.policies[run.learner].renderer
    else:
        names = [str(environments)] if isinstance(environments, (str, Path)) else list(environments)
        specs = specs_of(names, registry)
        run = RolloutFile.model_validate({
            "envfarm": 1, "run": "trl", "seed": seed, "workers": workers, "backend": backend,
            "environments": [{"id": i, "setting": dict(setting or {})} for i in specs],
            "policies": {LEARNER: {"model": "the trainer's", "trainable": True}}, "engine": {"max_in_flight": max_in_flight},
            "sampling": {"max_tokens": max_tokens, "episode_tokens": episode_tokens},
        })  # fmt: skip
    if run.learner != LEARNER:
        raise UserError(f"the trainable policy of a run file for TRL is called {LEARNER!r}, not {run.learner!r}")
    choices = run.choices(specs)
    seated = {name for c in choices for name in c.seats.values()} - {LEARNER}
    others = build_policies({n: run.policies[n] for n in seated}, run.engine, run.folder)
    return RolloutFunc(
        run, Source(choices, run.seed), others, renderer=renderer or "chatml", store=None if store is None else Path(store)
    )


def _only_seat(env: str, seats: Mapping[str, str], learner: str) -> str:
    own = [role for role, name in seats.items() if name == learner]
    if len(own) != 1:
        raise UserError(
            f"{env}: the learner sits in {', '.join(own) or 'no seat'}; GRPOTrainer takes one row per episode, so exactly one "
            "seat must be its. Name who sits in the others under `seats` of a run file"
        )
    return own[0]


def _stage(trainer: Any) -> str:
    name = "grpo" if trainer.model.training else "grpo-eval"
    many = trainer.accelerator.num_processes > 1  # each process plays its own share, with seeds of its own
    return f"{name}-{trainer.accelerator.process_index}" if many else name


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _columns(episode: Episode, seat: str, eos: int) -> dict[str, Any]:
    """What the trainer gets of one episode. Raises: CapabilityError where it is more than one row."""
    rows = rows_of(episode, [seat])
    if len(rows) > 1:
        raise CapabilityError(
            f"{episode.id} has {len(rows)} rows, as its template rewrites history; GRPOTrainer takes one per episode. Use "
            '`renderer="chatml"`, which does not'
        )
    about = {
        REWARD: episode.reward.get(seat, 0.0) if episode.ok else None,
        "environment_success": episode.success.get(seat, False), "environment_stop": str(episode.stop),
        "environment_turns": sum(s.seat == seat for s in episode.steps), "episode_id": episode.id,
    }  # fmt: skip
    if not rows:  # nothing was said: one token that is not trained
        return {"prompt_ids": [eos], "completion_ids": [eos], "logprobs": [0.0], "env_mask": [0], **about}
    row = rows[0]
    first, end = int(row.mask.argmax()), len(row) - int(row.mask[::-1].argmax())
    mask = row.mask[first:end] if episode.ok else row.mask[first:end] & False
    return {
        "prompt_ids": row.token_ids[:first].tolist(), "completion_ids": row.token_ids[first:end].tolist(),
        "logprobs": row.logprobs[first:end].tolist(), "env_mask": mask.astype(int).tolist(), **about,
    }  # fmt: skip
