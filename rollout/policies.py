"""Who sits in a seat: weights behind an engine, or a script that asks the session itself.

A policy answers one turn at a time. It is shared by all episodes and holds no episode's state; what it needs to
remember of one lives in the `Recorder`. A script needs no engine and leaves no tokens: its episodes are tokenized
later, from their recorded steps (`rollout.rows.tokenize`), once there is a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from envfarm.errors import InfraError
from envfarm.seeding import derive_seed, stable_hash
from envfarm.session import Turn
from envfarm.tools import Action, ToolCall
from rollout.engines.base import Engine, Generation
from rollout.recorder import Conversation, Recorder
from rollout.renderers.base import Renderer
from rollout.renderers.pieces import read_calls
from rollout.types import Message, PolicyVersion, SamplingParams, StopReason

MALFORMED_CALL = "malformed"
"""A reply whose tool call cannot be read is sent as a call of this tool, which no environment has: the session
answers with what can be called, counts the turn, and replay does the same."""


class AsyncSession(Protocol):
    """The session of `envfarm.session`, awaited: over a wire or in this process."""

    async def reset(self, instance: Any) -> Turn: ...
    async def step(self, action: Action) -> Turn: ...
    async def finish(self, reason: str) -> Turn: ...
    async def oracle(self) -> str: ...
    async def random(self, seed: int) -> str: ...
    async def close(self) -> None: ...


@dataclass
class Moment:
    """One seat's view of a turn, handed to its policy."""

    session: AsyncSession
    recorder: Recorder
    role: str
    turn: Turn
    number: int  # actions that this seat took before
    seed: int  # of this reply
    sampling: SamplingParams
    tools: Sequence[Mapping[str, Any]] = ()
    episode_id: str = ""
    messages: list[Message] = field(default_factory=list)  # of this seat so far, for policies without tokens
    used_tokens: int = 0  # sampled by this seat so far
    token_budget: int = 0  # of the episode and seat; 0 is none


@dataclass(frozen=True)
class Reply:
    """What a policy does: `action` goes to the session, unless `stop` ends the episode there."""

    text: str
    action: Action = ""
    stop: StopReason | None = None
    sampled_tokens: int = 0


class Policy(Protocol):
    @property
    def version(self) -> PolicyVersion: ...

    async def reply(self, moment: Moment) -> Reply:
        """Raises: InfraError where the engine died, EpisodeErrors of the session that it asks."""
        ...


class ChatEngine(Engine, Protocol):
    """An engine without token ids: messages in, text out (`rollout.engines.openai`)."""

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], params: SamplingParams, *, policy: str = ""
    ) -> Generation:
        """Raises: UserError where the server refuses, InfraError where it fails."""
        ...


Script = Literal["oracle", "null", "random", "replay"]


@dataclass(frozen=True)
class ScriptedPolicy:
    """Acts without a model: the environment's oracle with a share of random actions, nothing, chance, or a record."""

    name: str
    script: Script
    random_share: float = 0.0
    """Of an oracle: how often it acts at random instead, drawn per reply."""
    actions: Mapping[str, Sequence[Action]] = field(default_factory=dict)
    """Of a replay: the actions per role, in order."""

    @property
    def version(self) -> PolicyVersion:
        what = {"script": self.script, "random_share": self.random_share}
        return PolicyVersion(policy=self.name, checksum=stable_hash(what)[:16])

    async def reply(self, moment: Moment) -> Reply:
        action = await self._act(moment)
        if action is None:
            return Reply("", stop=StopReason.AGENT_STOPPED)
        return Reply(action if isinstance(action, str) else "", action)

    async def _act(self, moment: Moment) -> Action | None:
        if self.script == "null":
            return ""
        if self.script == "replay":
            actions = self.actions.get(moment.role, ())
            return actions[moment.number] if moment.number < len(actions) else None
        drawn = derive_seed("random share", moment.seed) / 2**63
        if self.script == "random" or drawn < self.random_share:
            return await moment.session.random(moment.seed)
        return await moment.session.oracle()


@dataclass
class EnginePolicy:
    """Weights that an engine serves under `version.policy`, spoken to through a renderer."""

    version: PolicyVersion
    engine: Engine
    renderer: Renderer

    async def reply(self, moment: Moment) -> Reply:
        talk = moment.recorder.conversation(moment.role, self.renderer, [dict(t) for t in moment.tools])
        talk.hear(_observation(talk, moment.turn))
        prompt = talk.prompt()
        sampling = self._sampling(moment, len(prompt))
        if isinstance(sampling, StopReason):
            return Reply("", stop=sampling)
        generation = await self.engine.generate(
            prompt, sampling, policy=self.version.policy, session=f"{moment.episode_id}/{moment.role}"
        )
        if generation.finish == "abort":
            raise InfraError("the engine aborted a reply that nobody called off")
        message, well_formed = talk.say(generation, sampling)
        count = len(generation.token_ids)
        if generation.finish == "length":
            short = sampling.max_tokens < moment.sampling.max_tokens and not self._over_budget(moment, count)
            stop = StopReason.CONTEXT_LIMIT if short else StopReason.TOKEN_LIMIT
            return Reply(message.content, stop=stop, sampled_tokens=count)
        return Reply(message.content, _action(message, well_formed), sampled_tokens=count)

    def _sampling(self, moment: Moment, prompt_length: int) -> SamplingParams | StopReason:
        """The reply's parameters, shortened to what is left of the context and the budget."""
        most = moment.sampling.max_tokens
        context = self.engine.capabilities.context
        if context:
            if prompt_length >= context:
                return StopReason.CONTEXT_LIMIT
            most = min(most, context - prompt_length)
        if moment.token_budget:
            if moment.used_tokens >= moment.token_budget:
                return StopReason.TOKEN_LIMIT
            most = min(most, moment.token_budget - moment.used_tokens)
        asked = moment.sampling
        return SamplingParams(
            temperature=asked.temperature, top_p=asked.top_p, max_tokens=most,
            stop_ids=asked.stop_ids or self.renderer.stop_ids, seed=moment.seed,
        )  # fmt: skip

    def _over_budget(self, moment: Moment, count: int) -> bool:
        return bool(moment.token_budget) and moment.used_tokens + count >= moment.token_budget


@dataclass
class ChatPolicy:
    """A model behind a server that takes messages and gives text: it can be evaluated, and leaves no tokens to train on."""

    version: PolicyVersion
    engine: ChatEngine

    async def reply(self, moment: Moment) -> Reply:
        said_before = moment.messages[-1:]
        called = bool(said_before) and bool(said_before[0].tool_calls)
        moment.messages.append(Message(role="tool" if called else "user", content=moment.turn.text))
        sampling = msgspec.structs.replace(moment.sampling, seed=moment.seed)
        generation = await self.engine.chat(moment.messages, moment.tools, sampling, policy=self.version.policy)
        content, calls, readable = read_calls(generation.text)
        moment.messages.append(Message(role="assistant", content=content, tool_calls=calls))
        if generation.finish == "length":
            return Reply(content, stop=StopReason.TOKEN_LIMIT)
        return Reply(content, _action(moment.messages[-1], readable))


def _observation(talk: Conversation, turn: Turn) -> Message:
    """A tool's answer where the seat called one natively, a user's message otherwise."""
    called = bool(talk.messages) and bool(talk.messages[-1].tool_calls)
    return Message(role="tool" if called else "user", content=turn.text)


def _action(message: Message, well_formed: bool) -> Action:
    if not well_formed or len(message.tool_calls) > 1:
        return ToolCall(MALFORMED_CALL, {})
    return message.tool_calls[0] if message.tool_calls else message.content
