"""Our environments for verifiers 0.1, the interface of its hub: `load_environment` gives a `vf.Environment`.

    env = vf.load_environment("trainer.adapters.verifiers", env="games/maze-v0", split="train", setting={"rung": 0})
    results = await env.evaluate(client=..., model=..., num_examples=16, rollouts_per_example=4)

A dataset row is one instance, whole, in `info`: all rollouts of an example play the same one. The first observation is
asked for when a rollout starts and replaces the row's placeholder. An episode that broke becomes `state["error"]`
(`vf.InfraError` where another attempt may go well: `evaluate(max_retries=...)` plays it again); its reward is no
reward, and neither it nor the advantage of its siblings counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import verifiers as vf
from datasets import Dataset

from envfarm.errors import EpisodeError, InfraError
from envfarm.session import Turn
from envfarm.spec import EnvSpec
from trainer.adapters.chat import ChatEpisode, NativeCall, Others
from trainer.adapters.instances import instances, one_seat, read_instance, spec_named
from trainer.adapters.sessions import shared_sessions

EPISODE = "envfarm"
"""Where a rollout's `ChatEpisode` lives in its state."""


def load_environment(
    env: str, *, split: str = "train", eval_split: str = "heldout", setting: dict[str, Any] | None = None,
    examples: int = 1000, eval_examples: int = 200, seat: str | None = None, others: Others = "random", tools: bool = True,
    backend: str = "bubblewrap", workers: int = 1, env_paths: Sequence[str] = (), **options: Any,
) -> vf.Environment:  # fmt: skip
    """`env` is an id, a YAML file or a folder. With `tools` the model is offered native calls, and may type as well.
    What is not ours goes to `vf.MultiTurnEnv`. Raises: UserError for what is unknown here."""
    spec = spec_named(env, env_paths)
    rows = partial(_rows, spec, setting=setting)
    return EnvfarmEnv(
        spec, seat=one_seat(spec, seat), others=others, tools=tools, backend=backend, workers=workers,
        dataset=partial(rows, spec.split(split) and split, examples),
        eval_dataset=partial(rows, spec.split(eval_split) and eval_split, eval_examples), env_id=spec.id, **options,
    )  # fmt: skip


def _rows(spec: EnvSpec, split: str, count: int, setting: dict[str, Any] | None) -> Dataset:
    return Dataset.from_list([
        {
            "prompt": [{"role": "user", "content": f"{spec.id}, {split} {index}"}],
            "answer": "",
            "info": f'{{"split": "{split}", "instance": {instance.to_json()}, "instance_hash": "{instance.hash}"}}',
        }
        for index, instance in enumerate(instances(spec, split, count, setting=setting))
    ])  # fmt: skip


class EpisodeRubric(vf.Rubric):
    """The episode's own verdict. Rollouts that broke get no advantage and do not move the mean of the others."""

    def __init__(self) -> None:
        super().__init__(funcs=[reward], weights=[1.0])
        for metric in (success, num_turns, malformed):
            self.add_metric(metric)

    async def score_rollout(self, state: vf.State) -> None:
        if state.get("error") is None:
            await super().score_rollout(state)
        else:
            await self.dummy_score_rollout(state)

    async def score_group(self, states: list[vf.State]) -> None:
        fine = [state for state in states if state.get("error") is None]
        if fine:
            await super().score_group(fine)
        for state in states:
            if state.get("error") is not None:
                await self.dummy_score_rollout(state)
                state["advantage"] = 0.0


async def reward(state: vf.State) -> float:
    return _episode(state).reward


async def success(state: vf.State) -> float:
    return float(_episode(state).success)


async def num_turns(state: vf.State) -> float:
    return float(_episode(state).turns)


async def malformed(state: vf.State) -> float:
    return float(_episode(state).malformed)


def _episode(state: vf.State) -> ChatEpisode:
    return state[EPISODE]


class EnvfarmEnv(vf.MultiTurnEnv):
    """One spec. Turn limits are the environment's own; a reply that was cut off ends the episode with its verdict."""

    def __init__(
        self, spec: EnvSpec, *, seat: str, others: Others, tools: bool, backend: str, workers: int, **options: Any
    ):  # fmt: skip
        self.spec, self._seat, self._others, self._native = spec, seat, others, tools
        self._sessions = shared_sessions(backend=backend, workers=workers)
        options.setdefault("timeout_seconds", spec.limits.episode_timeout_s)
        super().__init__(rubric=EpisodeRubric(), pass_threshold=spec.reward.solved_at, **options)
        self.rubric = EpisodeRubric()  # alone: in a group with verifiers' monitor, the monitor's advantages (all 0) win

    async def setup_state(self, state: vf.State) -> None:
        instance = read_instance(self.spec, msgspec.json.encode(state["info"]["instance"]).decode())
        state[EPISODE] = ChatEpisode(self._sessions, self.spec, instance, self._seat, self._others)
        turn = await self._guarded(_episode(state).open())
        opening = [m for m in state["prompt"] if m["role"] == "system"]
        state["prompt"] = [*opening, vf.UserMessage(content=turn.text)]
        self._offer(state, turn)
        if turn.over:
            state["final_env_response"] = []

    async def env_response(self, messages: vf.Messages, state: vf.State, **kwargs: Any) -> vf.Messages:
        said = state["trajectory"][-1]["response"].message
        calls: list[NativeCall] = [(c.name, c.arguments) for c in said.tool_calls or ()]
        if said.finish_reason == "length":
            turn = await self._guarded(_episode(state).finish("token_limit"))
        else:
            turn = await self._guarded(_episode(state).act(_text(said.content), calls))
        self._offer(state, turn)
        answers: vf.Messages = [vf.ToolMessage(tool_call_id=c.id, content=turn.text) for c in said.tool_calls or ()]
        answers = answers or [vf.UserMessage(content=turn.text)]
        if turn.over:
            state["final_env_response"] = answers
        return answers

    @vf.cleanup
    async def end_session(self, state: vf.State) -> None:
        """Whatever ended the rollout. One that verifiers ended (its own token limits) still gets the verdict."""
        episode = state.get(EPISODE)
        if episode is None:
            return
        try:
            if state.get("error") is None and not episode.stop:
                await episode.finish("context_limit" if state.get("prompt_too_long") else "token_limit")
        except EpisodeError as error:
            state["error"] = _as_theirs(error)
        finally:
            await episode.close()

    def mark_timed_out(self, state: vf.State) -> None:
        """The wall clock ran out: an episode without a verdict."""
        super().mark_timed_out(state)
        state["error"] = vf.InfraError(f"{self.spec.id}: the episode's {self.timeout_seconds} s were over")

    def _offer(self, state: vf.State, turn: Turn) -> None:
        if self._native and turn.tools:
            state["tool_defs"] = [vf.Tool(name=t.name, description=t.description, parameters=t.schema) for t in turn.tools]

    async def _guarded(self, answer: Any) -> Turn:
        try:
            return await answer
        except EpisodeError as error:
            raise _as_theirs(error) from error


def _as_theirs(error: EpisodeError) -> vf.Error:
    """What may go well next time is theirs to retry; an environment's or verifier's own fault is not."""
    kind = vf.InfraError if isinstance(error, InfraError) else vf.Error
    return kind(f"{error.status}: {error}")


def _text(content: Any) -> str:
    """A reply's text, whether it came as a string or in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part["type"] == "text")
