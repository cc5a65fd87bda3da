"""One episode as it was played, turn by turn, and two of them compared.

What the world says is text (compared to the byte, the output of commands under `envfarm.masking`) and everything else of a
`Turn`: who acts, rewards, tools, events, virtual time, the end. Blocks are what the text was written from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from envfarm.comparison import Comparison, Pair
from envfarm.errors import EpisodeError, InfraError
from envfarm.session import Turn
from envfarm.spec import EnvSpec, Instance
from envfarm.testing.probe import TRIED
from envfarm.worker.client import AsyncSession

POLICIES: dict[str, Callable[[AsyncSession, int], Awaitable[str]]] = {
    "oracle": lambda session, index: session.oracle(),
    "random": lambda session, index: session.random(index),
}
"""Who plays; `index` counts the actions before. Neither looks at the text, so a difference shows in every later turn, too."""

_OTHERWISE_COMPARED = ("text", "command_output", "blocks")


@dataclass(frozen=True)
class Case:
    """One episode to be played wherever it can be."""

    spec: EnvSpec
    instance: Instance
    policy: str

    @property
    def name(self) -> str:
        setting = "".join(f" {key} {value}" for key, value in self.instance.setting.items())
        return f"{self.spec.id} {self.instance.split} {self.instance.seed}{setting}, {self.policy}"


@dataclass
class Transcript:
    """`turns[0]` is the first observation, `turns[i + 1]` what followed `actions[i]`."""

    turns: list[Turn] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    error: str = ""  # what ended it, where the world did not


def cases_of(spec: EnvSpec, count: int) -> Iterator[Case]:
    """`count` instances, over the splits and rungs in turn, each once with every policy."""
    splits = [name for name in spec.splits if name in TRIED]
    rungs = range(len(spec.ladder)) or [None]
    for number in range(count):
        split, rung = splits[number % len(splits)], rungs[number % len(rungs)]
        instance = spec.instance(split, number % spec.size(split), {} if rung is None else {"rung": rung})
        for policy in POLICIES:
            yield Case(spec, instance, policy)


async def play(case: Case, session: AsyncSession) -> Transcript:
    """Raises: InfraError."""
    played, act = Transcript(), POLICIES[case.policy]
    try:
        played.turns.append(await session.reset(case.instance))
        while not played.turns[-1].over:
            played.actions.append(await act(session, len(played.actions)))
            played.turns.append(await session.step(played.actions[-1]))
    except InfraError:
        raise
    except EpisodeError as error:
        played.error = f"{error.status}: {error}"
    return played


def compare(case: Case, here: Transcript, there: Transcript, into: Comparison) -> None:
    """Up to the first turn that differs: what follows from it says nothing new."""
    pair = Pair(case.name, into)
    for index, (turn, other) in enumerate(zip(here.turns, there.turns, strict=False)):
        command, where = "reset", "first observation"
        if index:
            command, where = here.actions[index - 1], f"after action {index}"
            if not pair.same(f"action {index}", command, there.actions[index - 1]):
                return
        spans, other_spans = turn.command_output, other.command_output
        same = pair.text(where, turn.text, spans, other.text, other_spans, command)
        for name in turn.__struct_fields__:
            if name not in _OTHERWISE_COMPARED:
                same &= pair.same(f"{where}, {name}", getattr(turn, name), getattr(other, name))
        if not same:
            return
    pair.same("actions", here.actions, there.actions)
    pair.same("error", here.error, there.error)
