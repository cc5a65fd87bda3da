"""One attempt on the worker and its verdict: an episode of `vault`, in which every code that is paid for was stolen.

It is a list of shell commands, then `submit`. The worker's session, its boxes and its verifier are the real ones. Stopped is:
the lowest reward, for a reason that is the agent's own. A command whose output holds the line `GOT` says that it got what it
wanted although nothing was paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from envfarm.hostile.attempt import Place, Seen
from envfarm.session import Turn
from envfarm.spec import EnvSpec, load_spec
from envfarm.tools import ToolCall
from envfarm.worker.local import LocalPool

_OWN_DOING = ("terminated", "agent_limit")


@cache
def vault() -> EnvSpec:
    return load_spec(Path(__file__).parent / "vault" / "vault.yaml")


def in_image(image: str) -> EnvSpec:
    spec = vault()
    return msgspec.structs.replace(spec, sandbox=msgspec.structs.replace(spec.sandbox, image=image))


async def play(place: Place, commands: tuple[str, ...] | None) -> Turn:
    """One episode: the commands and `submit`, or with None the oracle's. The last turn; all texts are in its `text`.

    Raises: EpisodeError."""
    spec, texts = in_image(place.image), []
    pool = LocalPool([spec], backend=place.backend)
    await pool.start()
    session = await pool.session(spec.id)
    try:
        turn = await session.reset(spec.instance("train", 0))
        todo = [ToolCall("shell", {"command": c}) for c in commands or ()] + [ToolCall("submit")]
        while not turn.over:
            turn = await session.step(await session.oracle() if commands is None else todo.pop(0))
            texts.append(turn.text)
    finally:
        await session.close()
    turn.text = "\n".join(texts)
    return turn


@dataclass(frozen=True)
class Cheat:
    name: str
    tried: str
    by: str
    """What stops it, for people."""
    commands: tuple[str, ...]
    guard: str = ""
    group: str = "verdict"

    async def play(self, place: Place) -> Seen:
        last = await play(place, self.commands)
        paid, floor = sum(last.rewards.values()), vault().reward.range[0]
        recorded = f"{last.stop}, reward {paid:g}"
        if paid > floor:
            return Seen(True, "was paid", recorded)
        if "GOT" in last.text.splitlines():
            return Seen(True, "the box did what it wanted", recorded)
        if last.stop not in _OWN_DOING:
            return Seen(True, f"ended the episode by {last.stop}", recorded)
        return Seen(False, self.by, recorded)


def program(text: str) -> str:
    """A command that writes the program which the verifier runs."""
    return f"cat >answer.sh <<'END'\n{text}\nEND"
