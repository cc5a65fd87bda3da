"""The second process of a backend whose boxes are not its children: see `owners`.

It knows of the owner's end by the pipe on its standard input and by its parent's number, as a forked child may still hold the
pipe. It ends when the owner has and nothing of its is left. Where both are killed, the reaper of the next backend on that engine
or cluster finds the boxes by their labels.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from importlib import import_module

_LOOK_S = 2.0
_DEADLINES_S = 30.0
_PATIENCE_S = 900.0
"""How long an engine that does not answer is waited for."""


def main(remove_left_over: Callable[[str | None], int], owner: str, parent: int) -> None:
    """`remove_left_over(owner)` says how many boxes it found, -1 where nobody answers."""
    looked = float("-inf")
    while os.getppid() == parent and not _closed(_LOOK_S):
        if time.monotonic() - looked > _DEADLINES_S:
            remove_left_over(None)
            looked = time.monotonic()
    until, clean = time.monotonic() + _PATIENCE_S, 0
    while clean < 2 and time.monotonic() < until:  # a creation that the owner began may still be under way
        clean = clean + 1 if remove_left_over(owner) == 0 else 0
        time.sleep(1.0)


def _closed(timeout_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], timeout_s)[0])


if __name__ == "__main__":
    main(import_module(sys.argv[1]).remove_left_over, sys.argv[2], int(sys.argv[3]))
