"""The second process of a Docker backend: removes its owner's containers when the owner is gone, and those past their deadline.

Started by the backend as `python -m envfarm.backends.docker_reaper OWNER PID` in a session of its own, so that neither Ctrl-C nor
`kill -9` of the owner ends it. It knows of the owner's end by the pipe on its standard input and by its parent's number, as a
forked child may still hold the pipe. It ends when the owner has and nothing of its is left. Where both are killed, the reaper
of the next backend on that engine finds the containers by their labels.
"""

from __future__ import annotations

import os
import select
import sys
import time

from envfarm.backends.docker import remove_left_over

_LOOK_S = 2.0
_DEADLINES_S = 30.0
_PATIENCE_S = 900.0
"""How long an engine that does not answer is waited for."""


def main(owner: str, parent: int) -> None:
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
    main(sys.argv[1], int(sys.argv[2]))
