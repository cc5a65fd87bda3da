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
_AGAIN_S, _SLOWLY_S = 1.0, 10.0
"""Between two looks for an owner that has ended: where there is something to remove, and where nobody answers."""
_PATIENCE_S = 300.0
"""How long it goes on without getting on: nobody answers, or what is there cannot be removed. It outlasts a restart of an engine
or of an API server. A longer one would gain little, as all that it would remove has another end: a cluster ends a pod at its
deadline (`activeDeadlineSeconds`), containers mostly end with their engine, and what is left of either the reaper of the next
backend there finds by its labels. Where engine or cluster are gone for good there is nothing to wait for."""


Remove = Callable[[str | None, Set[str]], int]


def main(remove_left_over: Remove, owner: str, parent: int) -> None:
    """`remove_left_over(owner, names)` says how many boxes it found, -1 where nobody answers."""
    looked, names = float("-inf"), set[str]()
    while os.getppid() == parent and _listen(names):
        if names or time.monotonic() - looked > _DEADLINES_S:
            if remove_left_over(None, names) == 0:
                names.clear()
            looked = time.monotonic()
    until, clean, fewest = time.monotonic() + _PATIENCE_S, 0, sys.maxsize
    while clean < 2 and time.monotonic() < until:  # a creation that the owner began may still be under way
        ended = os.getppid() != parent
        found = remove_left_over(owner if ended else None, names)
        clean = clean + 1 if found == 0 else 0
        if 0 <= found < fewest:
            until, fewest = time.monotonic() + _PATIENCE_S, found
        time.sleep(_AGAIN_S if found >= 0 else _SLOWLY_S)


def _listen(names: set[str]) -> bool:
    """For a while. False where the owner has closed the pipe."""
    if not select.select([0], [], [], _LOOK_S)[0]:
        return True
    said = os.read(0, 1 << 16)  # a write of a short line comes whole
    names.update(said.decode().split())
    return bool(said)


def _remover(module: str) -> Remove:
    """Its backend is loaded when there is something to look for: many owners are gone before that."""
    return lambda owner, names: import_module(module).remove_left_over(owner, names)


if __name__ == "__main__":
    main(_remover(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
