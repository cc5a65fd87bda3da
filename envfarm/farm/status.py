"""What is said between a keeper and those who ask it."""

from __future__ import annotations

import msgspec

from envfarm.box import BoxSpec
from envfarm.farm.places import WorkerInfo


class BoxCounts(msgspec.Struct, frozen=True):
    """Of one pool."""

    min: int
    max: int
    warm: int
    free: int = 0
    leased: int = 0
    making: int = 0
    waiting: int = 0
    """Sessions that wait for a box."""
    said: str = ""
    """Why there are not as many as there should be, or why sessions wait."""


class PoolStatus(msgspec.Struct, frozen=True):
    environments: list[str]
    workers: list[WorkerInfo]
    wanted: int
    """Workers."""
    boxes: BoxCounts | None = None
    """None where boxes are children of their worker."""


class Status(msgspec.Struct, frozen=True):
    farm: str
    kind: str
    pools: list[PoolStatus]


class Roster(msgspec.Struct, frozen=True):
    """What a run needs to know: `GET /workers`."""

    version: int
    """Goes up with every change."""
    file: dict[str, object]
    """The farm's, as JSON."""
    workers: list[WorkerInfo]


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /scale`. What is None stays."""

    pool: int = 0
    workers: int | None = None
    min: int | None = None
    max: int | None = None
    warm: int | None = None


class LeaseRequest(msgspec.Struct, frozen=True):
    """`POST /pools/N/leases`. Answer: a box's name."""

    spec: BoxSpec
    holder: str
    patience_s: float
    further: bool = False
    """Of a session that has a box already: what verifies needs a fresh one beside the agent's."""


class Beats(msgspec.Struct, frozen=True):
    """`POST /pools/N/beats`. Answer: the names of those whose lease is over."""

    boxes: list[str]
    holder: str
