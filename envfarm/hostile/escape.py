"""One attempt to leave the box: a script (`script.PRELUDE` and a few lines) that says what worked.

Anything that worked is a success of the agent's; what a script tries is harmless where it works: opened and not written, asked
for and not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from envfarm.errors import UserError
from envfarm.hostile.attempt import Place, Seen
from envfarm.hostile.script import PRELUDE, Said

_SHOWN = 3


@dataclass(frozen=True)
class Escape:
    name: str
    tried: str
    guard: str
    body: str
    group: str = "escape"

    async def play(self, place: Place) -> Seen:
        async with place.box(output_bytes=1 << 16) as box:
            await box.write("/tmp/attempt.py", (PRELUDE + place.bait.known_to_the_script() + self.body).encode())
            result = await box.exec("python3 -I -S -B /tmp/attempt.py")
            after = await box.exec("echo usable")
        said, recorded = Said.of(result.text), f"exit code {result.exit_code}"
        if result.limit is not None:
            recorded = f"limit {result.limit}, {recorded}"
        if place.bait.word in result.text:
            return Seen(True, "found what lay in the worker's place", recorded)
        if said.got:
            return Seen(True, _list(said.got), recorded)
        if not said.refused and result.limit is None:
            raise UserError(f"the attempt {self.name!r} was not tried (needs python3 in {box.spec.image}): {result.text[-300:]}")
        if after.stdout != b"usable\n" and after.limit is None:
            return Seen(True, f"the next command broke: {after.text[:80]!r}", recorded)
        return Seen(False, _list(said.refused) or f"{result.limit} limit", recorded)


def _list(said: list[str]) -> str:
    more = len(said) - _SHOWN
    return ", ".join(said[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
