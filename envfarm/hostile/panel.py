"""The panel: every attempt, played on one backend through its protocol and its declared `enforcement()` alone.

A backend is played as it is: what it says to enforce must hold, and what it says not to enforce is shown as that and never as
stopped. Before the attempts on the verdict the environment's own oracle is played, as a floor reward says nothing where
nobody is paid.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import msgspec

from envfarm.box import NOT_ENFORCED, Backend
from envfarm.errors import EpisodeError, UserError, did_you_mean
from envfarm.hostile import attempts_artifacts, attempts_kernel, attempts_limits, attempts_reach, attempts_verdict, cheat
from envfarm.hostile.attempt import Attempt, Outcome, Place, Seen
from envfarm.hostile.bait import Bait

ATTEMPTS: dict[str, Attempt] = {
    attempt.name: attempt
    for part in (attempts_limits, attempts_reach, attempts_kernel, attempts_verdict, attempts_artifacts)
    for attempt in part.ATTEMPTS
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the panel."""

    backend: str
    group: str
    attempt: str
    tried: str
    outcome: Outcome
    by: str  # what stopped it; what is not enforced; what the agent got
    recorded: str


async def panel(backend: Backend, only: Iterable[str] | None = None) -> AsyncIterator[Finding]:
    """Findings as they come. `only` names attempts.

    Raises: BoxUnavailableError, UserError (an unknown attempt, a place in which nothing can be judged)."""
    chosen = [named(name) for name in (ATTEMPTS if only is None else only)]
    await backend.probe()
    with Bait() as bait:
        place = Place(backend, bait)
        if any(attempt.group == "verdict" for attempt in chosen):
            await _someone_is_paid(place)
        for attempt in chosen:
            yield await judged(attempt, place)


def named(name: str) -> Attempt:
    """Raises: UserError."""
    if name not in ATTEMPTS:
        raise UserError(f"no attempt {name!r}{did_you_mean(name, ATTEMPTS)}; there are {', '.join(ATTEMPTS)}")
    return ATTEMPTS[name]


async def judged(attempt: Attempt, place: Place) -> Finding:
    """Play it, and say what it means on this backend. Raises: UserError."""
    try:
        seen = await attempt.play(place)
    except EpisodeError as error:
        seen = Seen(True, f"blamed on the farm: {error}", error.status)
    said = place.backend.enforcement()
    guard = attempt.name if attempt.name in said else attempt.guard
    declared = said.get(guard, "")
    outcome, by = (Outcome.SUCCEEDED if seen.succeeded else Outcome.STOPPED), seen.by
    if declared.startswith(NOT_ENFORCED):
        outcome, by = Outcome.NOT_ENFORCED, f"{guard}: {declared.removeprefix(NOT_ENFORCED).lstrip(': ')}"
    return Finding(
        backend=place.backend.name,
        group=attempt.group,
        attempt=attempt.name,
        tried=attempt.tried,
        outcome=outcome,
        by=by,
        recorded=seen.recorded,
    )


async def _someone_is_paid(place: Place) -> None:
    """Raises: UserError, EpisodeError."""
    last = await cheat.play(place, None)
    if sum(last.rewards.values()) < cheat.vault().reward.solved_at:
        raise UserError(
            f"no verdict can be judged here: the panel's own oracle got {last.rewards} ({last.stop}): {last.text[-300:]}"
        )
