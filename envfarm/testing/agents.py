"""Stock agents, and one episode played with them in this process. What the gates of `check_env` are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envfarm.seeding import generator
from envfarm.session import Session, Turn

if TYPE_CHECKING:
    from envfarm.spec import Instance

Agent = Callable[[Session, Turn, int], str | None]
"""`agent(session, turn, index) -> action text`, or None to stop (`agent_stopped`). `index` counts all actions."""


def oracle(session: Session, turn: Turn, index: int) -> str | None:
    """The environment's own expert."""
    return session.oracle()


def null(session: Session, turn: Turn, index: int) -> str | None:
    """Stops at once."""
    return None


def random(session: Session, turn: Turn, index: int) -> str | None:
    """Thoughtless, seeded actions until the episode ends."""
    return session.random(index)


def mixed(share: float, seed: int = 0) -> Agent:
    """The oracle with a share of random actions: an agent of middling skill."""

    def agent(session: Session, turn: Turn, index: int) -> str | None:
        if generator("mixed agent", seed, index, turn.text).random() < share:
            return session.random(index + 1000 * seed)
        return session.oracle()

    return agent


def scripted(actions: list[str]) -> Agent:
    """Given actions, then stops."""

    def agent(session: Session, turn: Turn, index: int) -> str | None:
        return actions[index] if index < len(actions) else None

    return agent


@dataclass
class Played:
    """What happened in one episode."""

    observations: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)  # per role, total
    stop: str = ""
    malformed: int = 0
    virtual_time_s: float = 0.0


def play(session: Session, instance: Instance, agent: Agent) -> Played:
    """One whole episode of `instance`. The session stays open. Raises: EpisodeError."""
    played = Played(rewards={role: 0.0 for role in session.env_spec.roles})
    turn = session.reset(instance)
    while True:
        played.observations.append(turn.text)
        played.malformed += turn.malformed
        for role, value in turn.rewards.items():
            played.rewards[role] += value
        if turn.over:
            played.stop, played.virtual_time_s = turn.stop, turn.virtual_time_s
            return played
        action = agent(session, turn, len(played.actions))
        if action is None:
            turn = session.finish("agent_stopped")
        else:
            played.actions.append(action)
            turn = session.step(action)
