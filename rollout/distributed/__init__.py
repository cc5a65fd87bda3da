"""Rollouts on a Ray cluster: episodes are played in actors, next to an engine each; everything else stays here.

    fleet = Fleet(RayEntry(workers=4), specs, backend="bubblewrap", workers=2, max_in_flight=64)
    await fleet.start()                                     # a local cluster, or the one at `address`
    engine = fleet.engine(run.engine, {"learner": folder})  # one in every replica, behind one face
    async with Rollouts(plan, fleet, {"learner": EnginePolicy(version, engine, renderer)}, store) as rollouts:
        ...                                                 # as on one machine
    await fleet.close()

Ray carries episodes, never turns: a replica (`replica.py`, one per actor) has workers and an engine of its own and is
handed one attempt at a time, blank; it returns it played. Order, permits, retries, error budget and the store belong
to `rollout.scheduler`, in one process, so each finished episode is stored exactly once, and an actor or node that dies
costs its episodes in flight: they are played again as another attempt. Environments travel as bundles, weights are put
into the object store once and read by every actor out of shared memory.

This package is Ray's one door (beside `trainer.rllib`).
"""

from __future__ import annotations

import rollout.distributed.available  # noqa: F401 - first
from rollout.distributed.fleet import Fleet

__all__ = ["Fleet"]
