"""The records that flow through a rollout. Read this first.

An `Episode` is one run of one instance. What each seat saw and said is a tree of `Node`s (one per message, with the
exact token ids); a `Branch` is a path of nodes from a root to a leaf: one training row. A `Group` is the G episodes
of one instance that share a baseline. Nothing here is ever rewritten: rewards may be appended, tokens never change.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

from envfarm.tools import ToolCall

SCHEMA_VERSION = 1


class StopReason(StrEnum):
    """Why an episode ended."""

    TERMINATED = "terminated"
    """The environment said so: solved, lost or over."""
    AGENT_STOPPED = "agent_stopped"
    """The agent declared itself done."""
    TURN_LIMIT = "turn_limit"
    """`limits.turns` actions were taken."""
    TOKEN_LIMIT = "token_limit"
    """One reply reached `sampling.max_tokens` without a stop token, or the episode its token budget."""
    CONTEXT_LIMIT = "context_limit"
    """The next prompt would not fit the engine's context."""
    AGENT_LIMIT = "agent_limit"
    """The agent's own command hit the box's memory, pids, disk, output or CPU limit, or idled past `exec_timeout_s`."""
    ENV_ERROR = "env_error"
    """The environment's code raised."""
    VERIFIER_ERROR = "verifier_error"
    """The verifier raised, or its reward was non-finite or out of range."""
    INFRA_ERROR = "infra_error"
    """An unexplained death or a starved machine. Retried."""
    TIMEOUT = "timeout"
    """The episode's wall clock (`limits.episode_timeout_s`) ran out."""
    ABORTED = "aborted"
    """Called off from outside: shutdown, or a cancelled group."""

    @property
    def ok(self) -> bool:
        """Whether the episode's reward means something. What is not ok is never reward 0 and never trained on."""
        return self in _OK


_OK = frozenset({
    StopReason.TERMINATED, StopReason.AGENT_STOPPED, StopReason.TURN_LIMIT, StopReason.TOKEN_LIMIT,
    StopReason.CONTEXT_LIMIT, StopReason.AGENT_LIMIT,
})  # fmt: skip


class PolicyVersion(msgspec.Struct, frozen=True, order=True, gc=False):
    """Which weights. `(policy, incarnation, number)` is never reused; `checksum` says what they were.

    A run that resumes from a checkpoint starts a new incarnation, since it may make update 17 again, differently.
    """

    policy: str
    incarnation: int = 0
    number: int = 0
    checksum: str = ""

    def __str__(self) -> str:
        return f"{self.policy}@{self.incarnation}.{self.number}"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a reply is sampled. Recorded with every sampled node."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    max_tokens: int = 64
    stop_ids: tuple[int, ...] = ()  # sampling ends after one of these; it is part of the reply
    seed: int = 0  # of this one reply: same seed, same prompt, same weights, same tokens


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message of a seat's conversation, before it is rendered to tokens."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: str = ""  # of an assistant: what a thinking template strips from history


class Node(msgspec.Struct, kw_only=True, gc=False):
    """One message as tokens. `token_ids`, `logprobs` and `mask` are equally long.

    `parent` is the index of the previous node of the branch within `Episode.nodes` (-1 for a root).
    A node is stored once, however many branches run through it.
    """

    parent: int
    seat: str  # the role that this conversation belongs to
    turn: int  # how many actions this seat had taken before
    message: Message
    token_ids: list[int]
    mask: list[bool]  # True where the token was sampled by a policy
    logprobs: list[float]  # of the distribution that was really sampled from; 0.0 where not sampled
    version: PolicyVersion | None = None  # None where nothing was sampled; the oldest if weights changed midway
    versions: list[tuple[int, PolicyVersion]] = []  # (first token index, version) spans where they changed midway
    sampling: SamplingParams | None = None


class Branch(msgspec.Struct, kw_only=True, gc=False):
    """A path of nodes: one training row. A sampled node is trained in the first branch that it appears in, only."""

    seat: str
    nodes: list[int]  # indices into Episode.nodes, root first
    forked_at: int = -1  # how many nodes are shared with the branch before, -1 for the first branch of a seat
    fork_reason: str = ""  # "template" (history rewritten), "retoken", "fork" (a session was forked)


class RewardEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One reward, appendable later (delayed, re-graded)."""

    seat: str
    turn: int  # the action that it followed, per seat
    component: str  # "env" for the environment's total
    value: float
    grader: str = "env"


class Timings(msgspec.Struct, kw_only=True, gc=False):
    """Wall-clock seconds, for people; never part of replay, hashes or logic."""

    queue_s: float = 0.0  # until a worker had a session for it
    engine_s: float = 0.0  # waiting for replies
    env_s: float = 0.0  # waiting for the session
    total_s: float = 0.0  # from the first observation asked for to the end


class Step(msgspec.Struct, kw_only=True, gc=False):
    """One turn as the environment saw it: what replay repeats."""

    seat: str
    observation: str  # the text this seat was shown before it acted
    action: str  # the reply's text, as sent to the session
    tool_calls: tuple[ToolCall, ...] = ()  # where the reply held native tool calls; sent instead of the text
    reward: dict[str, float] = {}  # per seat, what this action brought
    malformed: bool = False  # the reply was not an action; the observation that follows says so
    command_output: tuple[tuple[int, int], ...] = ()  # [start, end) spans of the *next* observation that a box's
    # command printed: compared under the documented mask in replay


class Episode(msgspec.Struct, kw_only=True, gc=False):
    """One run of one instance, finished."""

    id: str  # unique in the store; derived from run, stage, step, group, member and attempt
    run: str
    stage: str  # "logs", "imitation", "offline", "online", "eval/..."
    step: int  # optimizer step that dispatched it, or 0
    group: str  # shared by the episodes of one instance
    member: int  # index within the group
    attempt: int  # retries after infra errors; 0 for the first
    env: str  # id with version
    instance: dict[str, Any]  # the whole Instance, as JSON
    instance_hash: str
    split: str
    seats: dict[str, PolicyVersion]  # role -> who sat there
    steps: list[Step]
    final_observation: str = ""
    opening_output: tuple[tuple[int, int], ...] = ()  # `command_output` spans of the first observation
    tools: list[dict[str, Any]] = []  # as first shown, in MCP's shape: a template that lists tools needs them later
    index: int = 0  # the group's place in its step's dispatch order
    nodes: list[Node] = []
    branches: list[Branch] = []
    rewards: list[RewardEntry] = []
    reward: dict[str, float] = {}  # per seat, total of component "env"
    success: dict[str, bool] = {}  # per seat: reward >= the spec's `solved_at`
    terminated: bool = False
    truncated: bool = False
    stop: StopReason = StopReason.TERMINATED
    error: str = ""  # where not ok
    drift: dict[str, int] = {}  # forks counted by reason
    malformed: int = 0  # malformed replies
    perturbations: list[dict[str, Any]] = []  # every event that a channel injected, in order
    virtual_time_s: float = 0.0
    timings: Timings = msgspec.field(default_factory=Timings)

    @property
    def ok(self) -> bool:
        return self.stop.ok


class Group(msgspec.Struct, kw_only=True, gc=False):
    """The episodes of one instance, in member order; not-ok members included."""

    id: str
    env: str
    instance_hash: str
    episodes: list[Episode]
