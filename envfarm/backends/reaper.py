"""The second process of a backend whose boxes are not its children: see `owners`.

It knows of the owner's end by the pipe on its standard input and by its parent's number, as a forked child may still hold the
pipe. What comes through the pipe are names of boxes that the owner could not remove. It ends when nothing is left of an owner
that has ended, or of those names where the owner lives on and has closed this backend alone: the boxes of its next one are not
for this reaper. Where both are killed, that of the next backend on that engine or cluster finds the boxes by their labels.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Set
from importlib import import_module

_LOOK_S = 2.0
_DEADLINES_S = 30.0
_PATIENCE_S = 900.0
"""How long an engine that does not answer is waited for."""


Remove = Callable[[str | None, Set[str]], int]


def main(remove_left_over: Remove, owner: str, parent: int) -> None:
    """`remove_left_over(owner, names)` says how many boxes it found, -1 where nobody answers."""
    looked, names = float("-inf"), set[str]()
    while os.getppid() == parent and _listen(names):
        if names or time.monotonic() - looked > _DEADLINES_S:
            if remove_left_over(None, names) == 0:
                names.clear()
            looked = time.monotonic()
    until, clean = time.monotonic() + _PATIENCE_S, 0
    while clean < 2 and time.monotonic() < until:  # a creation that the owner began may still be under way
        ended = os.getppid() != parent
        clean = clean + 1 if remove_left_over(owner if ended else None, names) == 0 else 0
        time.sleep(1.0)


def _listen(names: set[str]) -> bool:
    """For a while. False where the owner has closed the pipe."""
    if not select.select([0], [], [], _LOOK_S)[0]:
        return True
    said = os.read(0, 1 << 16)  # a write of a short line comes whole
    names.update(said.decode().split())
    return bool(said)


if __name__ == "__main__":
    main(import_module(sys.argv[1]).remove_left_over, sys.argv[2], int(sys.argv[3]))
