"""Our environments inside verl: an agent loop that plays one episode per row, in verl's own workers.

    actor_rollout_ref.rollout.agent.agent_loop_config_path: DATASET/agent.yaml     # written by `envfarm export --to verl`

    - name: envfarm                                     # what the rows' `agent_name` says
      _target_: trainer.adapters.verl.EnvfarmAgentLoop
      renderer: chatml

The loop is ours (`rollout.episode`), the tokens are verl's: its server gets the ids that our renderer made and what it
samples goes into the row as it came; nothing is tokenized twice, verl's own chat template is not used. A row is one
episode of one seat: `prompt_ids` up to the first sampled token, everything from there to the last one in
`response_ids`, `response_mask` 1 where the model spoke. The reward is the episode's.

verl can leave no row out of a group, and an episode that broke has no reward that means anything. So such an episode
is played again, at most `attempts` times in all; then the run stops with the reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal
from uuid import uuid4
from weakref import WeakKeyDictionary

from envfarm.errors import CapabilityError, RunHaltedError, UserError
from envfarm.spec import EnvSpec, Instance
from rollout.engines.base import Capabilities, Generation
from rollout.episode import Terms
from rollout.export.verl import split_row
from rollout.hosts import Here
from rollout.plan import GroupRequest
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.renderers.base import Renderer
from rollout.rows import rows_of
from rollout.scheduler import blank_episode
from rollout.types import Episode, PolicyVersion, SamplingParams
from trainer.adapters.instances import one_seat, read_instance, spec_named
from trainer.adapters.requirements import importing
from trainer.adapters.sessions import RemoteSession, shared_sessions
from trainer.adapters.tokenizers import renderer_of

with importing("verl", install="pip install 'envfarm[verl]'"):
    from verl.experimental.agent_loop.agent_loop import (
        AgentLoopBase,
        AgentLoopMetrics,
        AgentLoopOutput,
        _agent_loop_registry,
        register,
    )


class EnvfarmAgentLoop(AgentLoopBase):
    """Made anew for every row, as verl does; what is costly (tokenizer, workers) is shared by the process."""

    def __init__(
        self, *args: Any, renderer: str = "chatml", max_tokens: int = 0, seat: str | None = None,
        others: Literal["oracle", "null", "random"] = "random", attempts: int = 3, backend: str = "bubblewrap",
        workers: int = 1, env_paths: tuple[str, ...] = (), **kwargs: Any,
    ):  # fmt: skip
        """`max_tokens` of one reply, 0 is as many as the response has room for; `seat` is the role that is trained
        where an environment has several, scripts (`others`) play the rest; `workers` are per verl worker."""
        super().__init__(*args, **kwargs)
        self.renderer = renderer_for(self.tokenizer, renderer)
        self._max_tokens = min(max_tokens or self.rollout_config.response_length, self.rollout_config.response_length)
        self._seat, self._others, self._attempts = seat, others, attempts
        self._env_paths = tuple(env_paths)
        self._sessions = shared_sessions(backend=backend, workers=workers)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Raises: UserError for a row that is not ours, RunHaltedError where every attempt broke."""
        said = row.get("extra_info") or {}
        if "env" not in said or "instance" not in said:
            raise UserError(
                f"this row of {row.get('data_source', 'the dataset')!r} names no environment in `extra_info`; "
                "rows for the agent `envfarm` are written by `envfarm export STORE --to verl`"
            )
        spec = spec_named(said["env"], self._env_paths)
        instance = read_instance(spec, said["instance"])
        seat = one_seat(spec, said.get("seat") or self._seat)
        for attempt in range(self._attempts):
            episode, engine = await self._play(spec, instance, seat, attempt, sampling_params, int(row.get("priority", 0)))
            if episode.ok:
                return self._output(episode, seat, engine)
        raise RunHaltedError(f"{spec.id}: {self._attempts} attempts at one episode broke; the last one: {episode.error}")

    async def _play(
        self, spec: EnvSpec, instance: Instance, seat: str, attempt: int, sampling_params: dict[str, Any], priority: int
    ) -> tuple[Episode, ServerEngine]:
        engine = ServerEngine(self.server_manager, sampling_params, self.rollout_config, priority)
        sampling = SamplingParams(
            temperature=sampling_params.get("temperature", 1.0), top_p=sampling_params.get("top_p", 1.0),
            max_tokens=self._max_tokens,
        )  # fmt: skip
        policies: dict[str, Policy] = {role: ScriptedPolicy(role, self._others) for role in spec.roles}
        policies[seat] = EnginePolicy(PolicyVersion("verl"), engine, self.renderer)
        request = GroupRequest(
            env=spec.id, instance=instance, size=1, stage="verl", step=0, index=0, seats={r: r for r in policies},
            sampling=sampling, split=instance.split,
        )  # fmt: skip
        episode = blank_episode("verl", request, 0, attempt, {role: p.version for role, p in policies.items()})
        terms = Terms(
            run_seed=0, seed_key=(instance.hash,), sampling=sampling, solved_at=spec.reward.solved_at,
            timeout_s=spec.limits.episode_timeout_s,
        )  # fmt: skip
        await Here(_Workers(self._sessions.open, spec)).play(episode, instance, policies, terms)
        return episode, engine

    def _output(self, episode: Episode, seat: str, engine: ServerEngine) -> AgentLoopOutput:
        rows = rows_of(episode, [seat])
        if len(rows) > 1:
            raise CapabilityError(
                f"the renderer {self.renderer.name!r} rewrote history and the episode forked into {len(rows)} rows; verl "
                "takes one row per episode. Use a renderer that keeps what was said, such as chatml"
            )
        if rows:
            prompt, response, mask, logprobs = split_row(rows[0])
        else:  # the others ended it before this seat could act: nothing to train, but a reward
            prompt, response, mask, logprobs = self.renderer.generation_prompt(), list(self.renderer.stop_ids[:1]), [0], [0.0]
        success = float(episode.success.get(seat, False))
        return AgentLoopOutput(
            prompt_ids=prompt, response_ids=response, response_mask=mask, response_logprobs=logprobs,
            reward_score=episode.reward.get(seat, 0.0), num_turns=2 * rows[0].turns if rows else 0,
            metrics=AgentLoopMetrics(
                generate_sequences=episode.timings.engine_s, tool_calls=episode.timings.env_s, num_preempted=engine.preempted
            ),
            extra_fields={
                "turn_scores": [e.value for e in episode.rewards if e.seat == seat and e.component == "env"],
                "tool_rewards": [], "min_global_steps": engine.first_step, "max_global_steps": engine.last_step,
                "reward_extra_info": {"acc": success, "malformed": float(episode.malformed)},
                "envfarm_stop": episode.stop.value, "envfarm_instance": episode.instance_hash,
            },
        )  # fmt: skip


if "envfarm" not in _agent_loop_registry:  # else agent.yaml has named it already, with its options
    register("envfarm")(EnvfarmAgentLoop)


class ServerEngine:
    """verl's server manager as an engine, for one episode. The response has room for `response_length` tokens in all,
    replies and observations together; it begins where the first prompt ends."""

    def __init__(self, server: Any, sampling_params: dict[str, Any], rollout_config: Any, priority: int = 0):
        self._server, self._sampling, self._priority = server, sampling_params, priority
        self._prompt_length, self._response_length = rollout_config.prompt_length, rollout_config.response_length
        self._request = f"det-{priority}" if rollout_config.get("full_determinism", False) else uuid4().hex
        self._opening = 0
        self.capabilities = Capabilities(token_ids=True, logprobs=True, versions=True)
        self.preempted = -1
        self.first_step: int | None = None
        self.last_step: int | None = None

    async def start(self) -> None:
        pass

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        """Raises: UserError where the first observation is longer than `data.max_prompt_length`."""
        if not self._opening:
            if len(prompt_ids) > self._prompt_length:
                raise UserError(
                    f"the first observation has {len(prompt_ids)} tokens and data.max_prompt_length is {self._prompt_length}; "
                    "raise it: cutting an observation would change the task"
                )
            self._opening = len(prompt_ids)
            self.capabilities = replace(self.capabilities, context=self._opening + self._response_length)
        most = min(params.max_tokens, self._opening + self._response_length - len(prompt_ids))
        asked = self._sampling | {"max_tokens": most, "stop_token_ids": list(params.stop_ids), "logprobs": True}
        output = await self._server.generate(
            request_id=self._request, prompt_ids=prompt_ids, sampling_params=asked, priority=self._priority
        )
        if output.log_probs is None or len(output.log_probs) != len(output.token_ids):
            raise CapabilityError("verl's server returned no logprobs; set actor_rollout_ref.rollout.calculate_log_probs=True")
        self._note(output)
        ids, ended = list(output.token_ids), bool(output.token_ids) and output.token_ids[-1] in params.stop_ids
        finish: Literal["stop", "length", "abort"] = "stop" if ended or len(ids) < most else "length"
        if output.stop_reason == "aborted":
            finish = "abort"
        return Generation(ids, list(output.log_probs), finish, PolicyVersion(policy, number=self.last_step or 0))

    def _note(self, output: Any) -> None:
        """Whose weights these were, for verl's own staleness rules."""
        fields = output.extra_fields
        low = fields.get("min_global_steps", fields.get("global_steps"))
        if self.first_step is None:
            self.first_step = low
        self.last_step = fields.get("max_global_steps", fields.get("global_steps"))
        if output.num_preempted is not None:
            self.preempted = max(self.preempted, 0) + output.num_preempted

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        raise CapabilityError("the weights behind verl's servers are verl's to update")

    async def close(self) -> None:
        pass


class _Workers:
    """`rollout.hosts.Pool` for one spec."""

    def __init__(self, open_: Any, spec: EnvSpec):
        self._open, self._spec = open_, spec

    async def session(self, env_id: str) -> RemoteSession:
        assert env_id == self._spec.id
        return await self._open(self._spec)


_RENDERERS: WeakKeyDictionary[Any, dict[str, Renderer]] = WeakKeyDictionary()


def renderer_for(tokenizer: Any, name: str) -> Renderer:
    """`renderer_of`, made once per tokenizer."""
    made = _RENDERERS.setdefault(tokenizer, {})
    if name not in made:
        made[name] = renderer_of(tokenizer, name)
    return made[name]
