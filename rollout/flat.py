"""Text worlds as vectors and numbered actions, for libraries of classic reinforcement learning.

    encoding = Encoding.of(spec)                     # which actions there are; refuses what cannot be numbered
    env = FlatEnv(spec, setting={"rung": 0})         # gymnasium: Box in, Discrete out
    encoding.observe(text, first, last, allowed)     # the same vector for a stored episode (`rollout.export.rllib`)

**Which environments fit.** One role, no free text: every parameter of every tool is a choice (`Literal`) or a truth
value. Then the actions are all calls there can be, in the order of the tools and of their choices. Where a parameter is
free (a number, a text), name the calls that count: `Encoding.of(spec, actions=["adjust red 1", "switch"])`. Settings
that rename tools (the channel `action.tool_aliases`) do not fit: `{"perturb": "off"}` or narrow that channel.

**Actions**, `Discrete(n + 1)`: number i is the i-th call; the last one is "no action of this environment", sent as an
empty text and answered as malformed. It is there so that a stored episode in which a model said something unreadable
still is an episode of this action space.

**Observations**, `Box(0, 1, [2 * size + 2 * (n + 1)], float32)`: what is seen now, what was seen first (where the task is
said), the action before (one-hot, zero at the start), and which actions the environment shows as this instance starts (a
mask; the others are answered as malformed). A text becomes `size` features, each 1 where one of its terms falls on it:
every word, every two neighbouring words, and every word of a line together with the line's first (`goal: north` is not
`open: north`). Terms fall on a feature by CRC-32; how often one occurs does not count. There is no memory beyond that.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from envfarm.errors import UserError
from envfarm.scenes import scene_class
from envfarm.session import Session, Turn, local_session
from envfarm.spec import EnvSpec
from envfarm.tools import Malformed, ToolCall, ToolSpec, check_arguments, parse_text, to_text

SIZE = 512
"""Features of one text."""

MOST_ACTIONS = 512
"""More than that is not something to enumerate."""

_WORD = re.compile(r"[^\s,.:;!?()\[\]{}\"'|]+|[|]")


@dataclass(frozen=True)
class Encoding:
    """The encoding of one environment. A pure function of the spec, picklable."""

    env: str
    tools: tuple[ToolSpec, ...]  # all that the environment declares; an instance may show fewer
    actions: tuple[ToolCall, ...]
    size: int = SIZE

    @staticmethod
    def of(spec: EnvSpec, *, actions: Sequence[str] | None = None, size: int = SIZE) -> Encoding:
        """Raises: UserError where the environment does not fit and why, or for an action that is none of its calls."""
        if len(spec.roles) > 1:
            raise UserError(f"{spec.id} has the roles {', '.join(spec.roles)}: expected a single-agent environment")
        scene = scene_class(spec)
        tools = scene.declared_tools()
        if scene.text_tool is not None or spec.kind != "entry":
            raise UserError(f"{spec.id} takes free text: its actions cannot be numbered, so it has no flat form")
        calls = _all_calls(spec, tools.values()) if actions is None else [_named_call(spec, text, tools) for text in actions]
        if not 1 < len(calls) <= MOST_ACTIONS:
            raise UserError(
                f"{spec.id} has {len(calls)} actions: expected 2 to {MOST_ACTIONS}; name those that count (`actions=`)"
            )
        return Encoding(spec.id, tuple(tools.values()), tuple(calls), size)

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        return gymnasium.spaces.Discrete(len(self.actions) + 1)

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        return gymnasium.spaces.Box(0.0, 1.0, (2 * self.size + 2 * len(self.actions) + 2,), np.float32)

    @property
    def nothing(self) -> int:
        """The number of what is no action."""
        return len(self.actions)

    @property
    def labels(self) -> list[str]:
        """The actions as text, in order."""
        tools = {t.name: t for t in self.tools}
        return [*(to_text(call, tools) for call in self.actions), ""]

    def observe(self, text: str, first: str, last: int | None, allowed: np.ndarray) -> np.ndarray:
        """The vector; `last` is the number of the action before, `allowed` a mask from `allowed`."""
        before = np.zeros(len(self.actions) + 1, np.float32)
        if last is not None:
            before[last] = 1.0
        return np.concatenate([features(text, self.size), features(first, self.size), before, allowed])

    def allowed(self, shown: Collection[str]) -> np.ndarray:
        """float32 [n + 1]: 1 where an instance that shows the tools of these names has the action.

        Raises: UserError for a tool of another name: aliases.
        """
        strange = sorted(set(shown) - {t.name for t in self.tools})
        if strange:
            raise UserError(
                f"{self.env} shows its tools under other names ({', '.join(strange)}): use a setting without the channel "
                'action.tool_aliases, such as {"perturb": "off"}'
            )
        return np.array([*(call.name in shown for call in self.actions), True], np.float32)

    def number(self, action: str | ToolCall, shown: Sequence[ToolSpec] | None = None) -> int:
        """The number of an action that was understood, as text in terms of the tools that were shown (all by default, in
        their own order of arguments). Raises: UserError where it is not among the actions."""
        tools = {t.name: t for t in (self.tools if shown is None else shown)}
        try:
            call = parse_text(action, tools) if isinstance(action, str) else action
            wanted = ToolCall(call.name, check_arguments(tools[call.name], call.arguments))
            return self.actions.index(wanted)
        except (Malformed, KeyError, ValueError):
            said = action if isinstance(action, str) else f"{action.name} {json.dumps(action.arguments)}"
            raise UserError(f"{self.env}: {said!r} is none of the {len(self.actions)} numbered actions") from None


def features(text: str, size: int) -> np.ndarray:
    """float32 [size], see the module."""
    vector = np.zeros(size, np.float32)
    for term in _terms(text):
        vector[zlib.crc32(term.encode()) % size] = 1.0
    return vector


def _terms(text: str) -> Iterator[str]:
    for line in text.lower().splitlines():
        words = _WORD.findall(line)
        yield from words
        for left, right in itertools.pairwise(words):
            yield f"{left} {right}"
        for word in words[1:]:
            yield f"{words[0]}: {word}"


def _all_calls(spec: EnvSpec, tools: Collection[ToolSpec]) -> list[ToolCall]:
    calls: list[ToolCall] = []
    for tool in tools:
        names = list(tool.parameters)
        every = itertools.product(*(_choices(spec, tool, n) for n in names))
        calls += [ToolCall(tool.name, {n: v for n, v in zip(names, values, strict=True) if v is not None}) for values in every]
    return calls


def _choices(spec: EnvSpec, tool: ToolSpec, name: str) -> list[Any]:
    """Values of one parameter; None leaves it out."""
    schema = tool.parameters[name]
    absent = [] if name in tool.schema["required"] else [None]
    if "enum" in schema:
        return [*absent, *schema["enum"]]
    if schema["type"] == "boolean":
        return [*absent, False, True]
    raise UserError(
        f"{spec.id}: {name!r} of the action {tool.name!r} is any {schema['type']}, so its actions cannot be numbered; name "
        f'those that count: actions=["{tool.name} ...", ...]'
    )


def _named_call(spec: EnvSpec, text: str, tools: Mapping[str, ToolSpec]) -> ToolCall:
    try:
        return parse_text(text, tools)
    except Malformed as error:
        raise UserError(f"{spec.id}: {text!r} is no action. {error}") from error


class FlatEnv(gymnasium.Env[np.ndarray, int]):
    """An environment of ours under `Encoding`. A reset's seed picks the instance, as in `envfarm.env.Env`."""

    metadata = {"render_modes": []}

    def __init__(
        self, spec: EnvSpec, *, setting: Mapping[str, Any] | None = None, split: str = "train",
        encoding: Encoding | None = None, backend: str = "bubblewrap",
    ):  # fmt: skip
        self.env_spec, self.setting, self.split = spec, dict(setting or {}), split
        self.encoding = encoding or Encoding.of(spec)
        self.observation_space, self.action_space = self.encoding.observation_space, self.encoding.action_space
        self._backend = backend
        self._session: Session | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
        """A new episode: of `options={"instance": Instance}`, else the split's instance that the seed draws."""
        super().reset(seed=seed)
        instance = (options or {}).get("instance")
        if instance is None:
            index = int(self.np_random.integers(self.env_spec.size(self.split)))
            instance = self.env_spec.instance(self.split, index, self.setting)
        self.close()
        self._session = local_session(self.env_spec, backend=self._backend)
        turn = self._session.reset(instance)
        self._first, self._allowed = turn.text, self.encoding.allowed({t.name for t in turn.tools})
        return self._seen(turn, None), {"instance": instance.hash, "text": turn.text}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self._session is not None, "reset comes first"
        number = int(action)
        turn = self._session.step("" if number == self.encoding.nothing else self.encoding.actions[number])
        info = {"text": turn.text, "malformed": turn.malformed, "stop": turn.stop}
        reward = sum(turn.rewards.values())
        return self._seen(turn, number), float(reward), turn.terminated, turn.truncated, info

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _seen(self, turn: Turn, last: int | None) -> np.ndarray:
        return self.encoding.observe(turn.text, self._first, last, self._allowed)
