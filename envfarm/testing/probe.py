"""What the checks of `envfarm.testing.check_env` look through: one environment, its sessions and its instances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envfarm.session import LocalSession, Session, local_session
from envfarm.testing.boxes import RecordingBox

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, Instance

TRIED = ("train", "validation", "heldout")


class Failed(Exception):
    """A check did not hold; the message says what was seen and what was expected."""


@dataclass
class Probe:
    """One environment under test, and how hard it is looked at."""

    spec: EnvSpec
    backend: str = "bubblewrap"
    episodes: int = 10  # per split and rung, for the agents
    contents: int = 1000  # seeds whose contents are compared
    _sessions: list[Session] = field(default_factory=list)

    @property
    def splits(self) -> list[str]:
        return [s for s in self.spec.splits if s in TRIED]

    @property
    def first_split(self) -> str:
        if not self.splits:
            raise Failed(f"none of the splits {', '.join(TRIED)} is there, and no other one may be trained on")
        return self.splits[0]

    @property
    def rungs(self) -> list[int | None]:
        """The ladder's rungs; without a ladder the whole range, as one."""
        return list(range(len(self.spec.ladder))) or [None]

    @property
    def judged_by_value(self) -> bool:
        """Games of several roles: an equilibrium has no success rate, so floors and contents do not apply."""
        return len(self.spec.roles) > 1

    def session(self) -> Session:
        made = local_session(self.spec, backend=self.backend)
        self._sessions.append(made)
        return made

    def instances(self, split: str, rung: int | None, count: int) -> Iterator[Instance]:
        setting = {} if rung is None else {"rung": rung}
        for i in range(min(count, self.spec.size(split))):
            yield self.spec.instance(split, i, setting)

    def content(self, instance: Instance) -> str:
        """The first observation and everything that is put into the box, without making one."""
        from envfarm.registry import make_scene

        box = RecordingBox()
        make_box = (lambda *snapshot: box) if self.spec.sandbox.box else None
        session = LocalSession(self.spec, make_scene(self.spec), make_box=make_box)
        try:
            return session.reset(instance).text + "\x02" + box.content
        finally:
            session.close()

    def close(self) -> None:
        for session in self._sessions:
            session.close()
