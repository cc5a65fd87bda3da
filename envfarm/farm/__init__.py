"""A farm: workers and boxes that several runs share, kept alive by one process, the keeper.

    FARM.yaml ──> keeper ──starts──> workers (processes, containers, pods)
                    │   ──makes───> boxes, some of them warm (containers, pods)
    run ──asks──────┘ for workers, plays on them over `envfarm.worker`'s protocol
    worker ──leases──> one box per session from the keeper, and speaks to it directly

What runs where:

    python -m envfarm.farm FARM.yaml [--on KIND] [--listen HOST:PORT] [--home FOLDER]      the keeper
    python -m envfarm.worker --env GLOB ... --host HOST --port PORT --bundles FOLDER --backend farm   a worker

Both read `TOKEN_VARIABLE`; a worker with the backend `farm` finds its keeper by `KEEPER_VARIABLE`.
"""

KEEPER_VARIABLE = "ENVFARM_KEEPER"
"""The keeper's URL, for workers."""

TOKEN_VARIABLE = "ENVFARM_TOKEN"
"""What whoever uses the farm must send: to the keeper as to its workers."""

KEEPER_PORT, WORKER_PORT = 7077, 7070
"""Where they listen in a cluster. On one machine any free port is taken."""

FARM_LABEL, ROLE_LABEL, POOL_LABEL = "envfarm.farm", "envfarm.role", "envfarm.pool"
"""Of containers and pods: the farm's name, `worker` or `keeper`, and the pool's number."""
