"""One call of an actor's method, awaited, and what may come of it in our own words."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from envfarm.errors import InfraError, UserError


class ReplicaLost(InfraError):
    """An actor died, or does not answer."""


async def ask(actor: Any, method: str, arguments: tuple[Any, ...], timeout_s: float | None) -> Any:
    """Raises: TimeoutError, ReplicaLost, what the replica raises. Cancelled, it calls off what it asked for."""
    answer = getattr(actor, method).remote(*arguments)
    coming = asyncio.ensure_future(_awaited(answer))
    coming.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, though nobody may be waiting
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(coming)  # Ray's client breaks down where a future of its own is cancelled
    except RayTaskError as error:
        raise _raised(error) from error
    except RayError as error:
        raise ReplicaLost(_shortly(error)) from error
    except asyncio.CancelledError:
        ray.cancel(answer)
        raise


async def _awaited(answer: Any) -> Any:
    return await answer


def _raised(error: RayTaskError) -> BaseException:
    """What the replica's code raised, as it was; an exception that did not survive the journey is told in Ray's words."""
    cause = error.cause
    if isinstance(cause, ModuleNotFoundError):
        return UserError(f"ray: a node lacks the module {cause.name!r}: install the same envfarm, with its extras, on every node")
    return cause if isinstance(cause, Exception) and not isinstance(cause, RayTaskError) else error


def _shortly(error: RayError) -> str:
    """The first line of what Ray says, and the one that names a module which an actor could not import."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [*lines[:1], *(line for line in lines[1:] if line.startswith("ModuleNotFoundError"))]
    return f"{type(error).__name__}: {' '.join(told)}"
