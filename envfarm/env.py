"""What authors write: a class with a first observation and tools, which is a `gymnasium.Env` at the same time.

    class Maze(Env):
        def start(self):                      # the first observation; self.instance, self.params, self.rng, self.box are there
            return Text("You stand in a maze.")

        @tool
        def move(self, direction: Literal["north", "south"]) -> str:
            '''Take one step.'''
            if self.solved():
                self.end(1.0)                 # reward, and the episode is over
            return "A wall." or "You move."

        def oracle(self): return ToolCall("move", {"direction": "north"})

An `Env` lives for one episode at a time. It is synchronous; whoever runs it decides about threads and processes.
Several roles: subclass `envfarm.aec.AECEnv`, which adds PettingZoo's API on the same `Scene`.
Sessions (`envfarm.session`) drive a `Scene` directly; `reset`/`step` are the Gymnasium view of the same thing, as text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np

from envfarm.blocks import Block, Blocks, as_blocks
from envfarm.box import Snapshot, SyncBox
from envfarm.errors import VerifierFault
from envfarm.seeding import generator
from envfarm.tools import Action, ToolCall, ToolError, ToolSpec, parse_text, tools_of

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, Instance

Observed = str | Block | Sequence[Block]


class Scene:
    """One episode's world, for one or several roles. Authors override `start`, tools, `oracle`, maybe the rest."""

    text_tool: ClassVar[str | None] = None
    """The tool that plain text goes to as a whole (a shell). None: text is `tool argument ...`."""
    forkable: ClassVar[bool] = False
    """Whether `copy.deepcopy` of the scene is a faithful snapshot (no files, sockets, processes)."""

    blocking: ClassVar[bool] = False
    """Whether its methods wait for others (a network): sessions get a thread of their own, as those with a box do."""

    make_box: Callable[..., Any] | None = None
    """Starts another box like the agent's, empty or from a snapshot; set by the session."""

    def __init__(self, env_spec: EnvSpec):
        self.env_spec = env_spec
        self.roles: tuple[str, ...] = tuple(env_spec.roles)
        self.tools: dict[str, ToolSpec] = dict(self.declared_tools())

    @classmethod
    def declared_tools(cls) -> dict[str, ToolSpec]:
        if "_envfarm_tools" not in cls.__dict__:
            cls._envfarm_tools = tools_of(cls)  # type: ignore[attr-defined]
        return cls._envfarm_tools  # type: ignore[attr-defined]

    # What authors override.

    def start(self) -> Observed:
        """Build the world from `self.params` (and `self.rng`) and say what the first role sees."""
        raise NotImplementedError(f"{type(self).__name__} does not define start()")

    def observe(self, role: str) -> Observed:
        """With several roles: what `role` sees when its turn comes. With one role, tools return what is seen."""
        return ()

    def oracle(self) -> Action:
        """What an expert does next, from whatever state this is. Solves every instance."""
        raise NotImplementedError(f"{type(self).__name__} has no oracle")

    def random_action(self, rng: np.random.Generator) -> Action:
        """A thoughtless action of the kind that agents take; the default draws a tool and arguments from its schema."""
        names = sorted(self.tools)
        spec = self.tools[names[int(rng.integers(len(names)))]]
        return ToolCall(spec.name, {n: _random_argument(s, rng) for n, s in spec.parameters.items()})

    def verdict(self) -> float | dict[str, float] | None:
        """Called once when the episode ends without a reward from `end`: the final reward, or None for 0.
        Verification that is too costly for every turn belongs here."""
        return None

    @contextmanager
    def fresh_box(self, snapshot: Snapshot | None = None) -> Iterator[Any]:
        """A box like the agent's and empty (or with a snapshot's files), for verification; stopped afterwards.

        Raises: VerifierFault where the scene has no box or is not run by a session, InfraError where none comes up."""
        if self.make_box is None:
            raise VerifierFault(f"{self.env_spec.id}: no fresh box; set `sandbox: {{box: true}}` and use a session")
        box = self.make_box(snapshot)
        try:
            yield box
        finally:
            box.stop()

    def release(self) -> None:
        """Free what the scene holds (not the box: that is its owner's)."""

    # What authors call.

    def reward(self, value: float, *, role: str | None = None, component: str = "env") -> None:
        """Give a reward now. Components other than "env" are recorded beside the total, not added to it."""
        if not math.isfinite(value):
            raise VerifierFault(f"{self.env_spec.id}: reward {value!r} is not finite")
        gained = self._gained.setdefault(role or self.turn, {})
        gained[component] = gained.get(component, 0.0) + float(value)

    def end(self, value: float | dict[str, float] | None = None, *, stop: str = "terminated") -> None:
        """The episode is over, with a last reward (per role with several). `stop="agent_limit"` where the agent's
        own command hit a limit that ends it, `"agent_stopped"` where the agent said that it is done."""
        self.over, self.stop = True, stop
        if value is not None:
            self._final(value)

    def _final(self, value: float | dict[str, float]) -> None:
        self._judged = True
        for role, reward in value.items() if isinstance(value, dict) else [(self.turn, value)]:
            self.reward(reward, role=role)

    # What sessions call.

    def begin(self, instance: Instance, box: SyncBox | None = None) -> Blocks:
        """Start the episode of `instance`. Returns the first observation of `self.turn`."""
        self.instance, self.params, self.row, self.box = instance, dict(instance.params), instance.row, box
        self.rng = generator("scene", *instance.stream)
        self.turn: str = self.roles[0]
        """Whose turn it is."""
        self.turn_limit: int | None = None
        """`start` may set it: actions of each role in this episode, in place of `limits.turns`; malformed ones count."""
        self.over, self.stop, self._judged = False, "", False
        self._gained: dict[str, dict[str, float]] = {}
        self.tools = dict(self.declared_tools())
        return as_blocks(self.start())

    def observe_blocks(self, role: str) -> Blocks:
        return as_blocks(self.observe(role))

    def call(self, call: ToolCall) -> Blocks:
        """Run a tool for `self.turn`. `call` names a visible one, with right arguments: it is `envfarm.tools.as_call`'s.
        Raises: Malformed where the tool itself finds the call to be none."""
        try:
            return as_blocks(getattr(self, call.name)(**call.arguments))
        except ToolError as error:
            return as_blocks(str(error))

    def judge(self) -> None:
        """The episode is over, for whatever reason: ask for the verdict, once."""
        self.over = True
        if not self._judged:
            self._judged = True
            value = self.verdict()
            if value is not None:
                self._final(value)

    def collect(self) -> dict[str, dict[str, float]]:
        """Rewards per role and component since the last call."""
        gained, self._gained = self._gained, {}
        return gained


class Env(Scene, gymnasium.Env):
    """A single-role scene as a Gymnasium environment with text in and text out."""

    metadata = {"render_modes": ["ansi"]}

    def __init__(self, env_spec: EnvSpec, *, setting: dict[str, Any] | None = None, render_mode: str | None = None):
        from envfarm.spaces import ActionText, ObservationText

        super().__init__(env_spec)
        self.setting, self.render_mode = setting or {}, render_mode
        self.observation_space = ObservationText()
        self.action_space = ActionText(self)
        self._session: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """A new episode. `options={"instance": Instance}` decides what it is; else `seed` picks from the train split
        (without one, the next draw of `np_random`). `info` holds the instance's hash and the observation's blocks.

        Where the spec needs a box, one is made with the default backend. Raises: BoxUnavailableError."""
        from envfarm.session import local_session

        super().reset(seed=seed)
        options = options or {}
        instance = options.get("instance")
        if instance is None:
            size = self.env_spec.size("train")
            instance = self.env_spec.instance("train", int(self.np_random.integers(size)), self.setting)
        if self._session is not None:
            self._session.close()
        self._session = local_session(self.env_spec, scene=self)
        turn = self._session.reset(instance)
        self._last = turn.text
        return turn.text, {"instance": instance.hash, "blocks": turn.blocks, "tools": [t.as_mcp() for t in turn.tools]}

    def step(self, action: Action) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One action, as text or `ToolCall`. Malformed actions are answered, not raised (`info["malformed"]`)."""
        turn = self._session.step(action)
        role = self.roles[0]
        self._last = turn.text
        info = {"blocks": turn.blocks, "malformed": turn.malformed, "stop": turn.stop, "components": turn.components}
        return turn.text, turn.rewards.get(role, 0.0), turn.terminated, turn.truncated, info

    def render(self) -> str | None:  # type: ignore[override]
        return getattr(self, "_last", None) if self.render_mode == "ansi" else None

    def close(self) -> None:
        session, self._session = getattr(self, "_session", None), None
        if session is not None:
            session.close()

    def parse(self, text: str) -> ToolCall:
        return parse_text(text, self.tools, self.text_tool)


def _random_argument(schema: dict[str, Any], rng: np.random.Generator) -> Any:
    if "enum" in schema:
        return schema["enum"][int(rng.integers(len(schema["enum"])))]
    kind = schema["type"]
    if kind == "integer":
        return int(rng.integers(0, 10))
    if kind == "number":
        return round(float(rng.uniform(0, 10)), 2)
    if kind == "boolean":
        return bool(rng.integers(2))
    if kind == "array":
        return [_random_argument(schema["items"], rng)]
    return "abcdefghij"[int(rng.integers(10))] if kind == "string" else {}
