"""Our environments for verifiers 0.4: a taskset of instances, the env that plays them, and a harness without a program.

    eval games-maze --env.taskset.split heldout       # after `python -m trainer.adapters.verifiers_package games/maze-v0 ...`

A task is one instance, whole, named by its hash: the rollouts of a task play the same one. `EnvfarmEnv.run` is the
run's user: it shows what the environment says and acts with what the agent answers. The harness sends each turn
straight to the run's endpoint, from this process: verifiers records every call (token ids, mask and logprobs, where the
client brings them), and no program has to be installed for it.

An episode that broke is an error of the episode and has no reward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import aiohttp
import msgspec
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire

from trainer.adapters.chat import ChatEpisode, NativeCall
from trainer.adapters.instances import instances, one_seat, read_instance, spec_named
from trainer.adapters.sessions import shared_sessions


class EnvfarmData(vf.TaskData):
    """One instance."""

    env: str
    env_paths: list[str] = []
    split: str
    instance: dict[str, Any]
    instance_hash: str


class EnvfarmState(vf.State):
    tools: list[dict[str, Any]] = []
    """What the model may call now, as chat completions take it; from the env to the harness."""


class EnvfarmTask(vf.Task[EnvfarmData, EnvfarmState]):
    @property
    def key(self) -> str:
        return self.data.instance_hash


class EnvfarmTasksetConfig(vf.TasksetConfig):
    env: str
    """Id, YAML file or folder of an environment."""
    env_paths: list[str] = []
    split: str = "train"
    setting: dict[str, Any] = {}
    """As in a run file: `{"rung": 0, "perturb": "off"}`."""
    count: int = 1000
    first: int = 0


def _tasks(config: Any) -> Iterator[EnvfarmTask]:
    spec = spec_named(config.env, config.env_paths)
    found = instances(spec, config.split, config.count, setting=config.setting, first=config.first)
    for index, instance in enumerate(found, start=config.first):
        yield EnvfarmTask(
            EnvfarmData(
                id=instance.hash, name=f"{spec.id} {config.split} {index}", env=config.env, env_paths=list(config.env_paths),
                split=config.split, instance=msgspec.to_builtins(instance), instance_hash=instance.hash,
            ),
            config.task,
        )  # fmt: skip


class EnvfarmTaskset(vf.Taskset[EnvfarmTask, EnvfarmTasksetConfig]):
    """Any environment: `--env.taskset.env` says which."""

    def load(self) -> Iterator[EnvfarmTask]:
        return _tasks(self.config)


def taskset_for(named: str) -> type[vf.Taskset]:
    """The taskset of one environment, for a package that exports it under the environment's name."""

    class Config(EnvfarmTasksetConfig):
        env: str = named

    class Bound(vf.Taskset[EnvfarmTask, Config]):
        def load(self) -> Iterator[EnvfarmTask]:
            return _tasks(self.config)

    return Bound


class EnvfarmEnvConfig(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())
    """The seat that is trained or evaluated. Nothing runs in its runtime: boxes are the environment's own."""
    seat: str | None = None
    """Its role, where the environment has several."""
    others: Literal["oracle", "null", "random"] = "random"
    """Who plays the other roles."""
    tools: bool = True
    """Offer native tool calls; text is understood as well. Off for renderers that know no tools."""
    backend: str = "bubblewrap"
    workers: int = 1


class EnvfarmEnv(vf.Env[EnvfarmEnvConfig]):
    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        """Raises: EpisodeError where the environment broke, TimeoutError where its wall clock ran out."""
        data, config = task.data, self.config
        spec = spec_named(data.env, data.env_paths)
        sessions = shared_sessions(backend=config.backend, workers=config.workers)
        instance = read_instance(spec, msgspec.json.encode(data.instance).decode())
        episode = ChatEpisode(sessions, spec, instance, one_seat(spec, config.seat), config.others)
        try:
            async with asyncio.timeout(spec.limits.episode_timeout_s), agents.agent.interaction(task) as interaction:
                judged = await _converse(episode, interaction, offer=config.tools)
                if judged:
                    interaction.trace.stop(episode.stop)  # unless a limit of verifiers' own did
        finally:
            await episode.close()
        if judged:
            trace = interaction.trace
            trace.record_reward("env", episode.reward)
            extra = {f"reward_{name}": value for name, value in episode.components.items() if name != "env"}
            trace.record_metrics(
                {"success": float(episode.success), "turns": float(episode.turns), "malformed": float(episode.malformed), **extra}
            )


async def _converse(episode: ChatEpisode, interaction: vf.Interaction, *, offer: bool) -> bool:
    """Turn by turn to the verdict. False where the agent's side broke (a dead endpoint): then there is none."""
    trace = interaction.trace
    turn = await episode.open()
    shown: vf.Messages = [vf.UserMessage(content=turn.text)]
    while not turn.over:
        if offer:
            trace.state.tools = [_tool(t.as_mcp()) for t in episode.tools]
        segment = await interaction.turn(shown)
        replies = [m for m in segment.messages if isinstance(m, vf.AssistantMessage)]
        if trace.errors:
            return False
        if segment.terminated or not replies:  # a limit of verifiers' own
            await episode.finish("token_limit")
            return True
        if trace.calls and trace.calls[-1].finish_reason == "length":
            await episode.finish("token_limit")
            return True
        calls: list[NativeCall] = [(c.name, c.arguments) for c in replies[-1].tool_calls or ()]
        turn = await episode.act(replies[-1].content or "", calls)
        answered = [vf.ToolMessage(tool_call_id=c.id, content=turn.text) for c in replies[-1].tool_calls or ()]
        shown = list(answered) or [vf.UserMessage(content=turn.text)]
    return True


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool["name"], "description": tool["description"], "parameters": tool["inputSchema"]}
    return {"type": "function", "function": function}


class EnvfarmHarnessConfig(vf.HarnessConfig):
    pass


class EnvfarmHarness(vf.Harness[EnvfarmHarnessConfig]):
    """One chat completion per segment, from this process."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self, ctx: vf.ModelContext, trace: vf.Trace, runtime: vf.Runtime, endpoint: str, secret: str,
        mcp_urls: dict[str, str], data: vf.TaskData,
    ) -> vf.ProgramResult:  # fmt: skip
        system, prompt = self.resolve_prompt(data)
        messages: list[Any] = [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or ())
        if system is not None:
            messages.insert(0, vf.SystemMessage(content=system))
        body: dict[str, Any] = {"model": ctx.model, "messages": [message_to_wire(m) for m in messages]}
        if trace.state.tools:
            body["tools"] = trace.state.tools
        headers = {"Authorization": f"Bearer {secret}"}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http,
            http.post(f"{endpoint}/chat/completions", json=body, headers=headers) as answer,
        ):
            said = await answer.text()
            return vf.ProgramResult(exit_code=0 if answer.status == 200 else 1, stdout="", stderr="" if answer.ok else said)
