"""A farm whose keeper and workers are pods: brought up and taken down from outside, as `kubectl apply` and `delete` would.

What is applied is what `envfarm farm render` prints, and the token, which is made once and kept. Objects are applied by the
server (server-side apply), so that a second `up` with a changed file changes what is there.
"""

from __future__ import annotations

import secrets
from typing import Any

from envfarm.backends.kubernetes_api import FORBIDDEN, NOT_FOUND, Api
from envfarm.backends.kubernetes_link import Link, Refused
from envfarm.errors import UserError
from envfarm.farm.file import FarmFile
from envfarm.farm.manifests import render, token_secret

_APPLY = "application/apply-patch+yaml"  # which JSON is, too
_MANAGER = [("fieldManager", "envfarm"), ("force", "true")]
_NEWEST = "PodDisruptionBudget"
_PLURAL = {"NetworkPolicy": "networkpolicies"}
"""Of kinds that do not just add an s."""


async def bring_up(farm: FarmFile) -> list[str]:
    """Apply the farm. The cluster starts it in its own time. Returns the kinds that a cluster of this version does not know,
    which are left out: only budgets for disruptions are new enough for that.

    Raises: BoxUnavailableError where no cluster answers, or it does not know this user; UserError for what it refuses: which object, which verb.
    """
    async with _Cluster() as cluster:
        unknown: dict[str, None] = {}
        for one in render(farm):
            try:
                await cluster.apply(one)
            except _Missing:
                if one["kind"] != _NEWEST:
                    raise UserError(f"this cluster does not know {one['apiVersion']} {one['kind']}: it is too old") from None
                unknown[f"{one['kind']} of {one['apiVersion']}"] = None
        secret = token_secret(farm, secrets.token_urlsafe(24))
        if not await cluster.has(secret):
            await cluster.apply(secret)
        return list(unknown)


async def take_down(farm: FarmFile) -> None:
    """Delete all that was applied, with its namespaces and so with every box. Raises: as `bring_up`; UserError where there is
    nothing of it."""
    async with _Cluster() as cluster:
        there = [await cluster.delete(one) for one in reversed(render(farm))]
        if not any(there):
            raise UserError(f"the cluster has nothing of a farm {farm.farm!r} in the namespaces that its file names")


class _Missing(Exception):
    pass


class _Cluster:
    def __init__(self) -> None:
        self._api = Api()

    async def __aenter__(self) -> _Cluster:
        await self._api.connect(())
        self._link = Link(self._api.access())
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._link.close()
        self._api.close()

    async def apply(self, one: dict[str, Any]) -> None:
        """Raises: _Missing where the cluster does not know its kind."""
        await self._ask("PATCH", one, one, _MANAGER)

    async def has(self, one: dict[str, Any]) -> bool:
        try:
            await self._ask("GET", one)
        except _Missing:
            return False
        return True

    async def delete(self, one: dict[str, Any]) -> bool:
        """Whether it was there. What it made goes with it."""
        try:
            await self._ask("DELETE", one, query=[("propagationPolicy", "Background")])
        except _Missing:
            return False
        return True

    async def _ask(
        self, method: str, one: dict[str, Any], body: Any = None, query: list[tuple[str, str]] | None = None
    ) -> dict[str, Any]:
        try:
            return await self._link.ask(method, _path(one), body, query=query, kind=_APPLY if body else "application/json")
        except Refused as refused:
            if refused.status == NOT_FOUND:
                raise _Missing from None
            if (unheard := self._api.unheard(refused.status, refused.said)) is not None:
                raise unheard from None
            what = f"{one['kind']} {one['metadata']['name']!r}"
            mend = ". Whoever may can do it with what `envfarm farm render` prints" if refused.status == FORBIDDEN else ""
            raise UserError(f"the cluster refused to {_VERBS[method]} {what}: {refused.said}{mend}") from None


_VERBS = {"PATCH": "apply", "GET": "get", "DELETE": "delete"}


def _path(one: dict[str, Any]) -> str:
    group, metadata, kind = one["apiVersion"], one["metadata"], one["kind"]
    root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    within = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{within}/{_PLURAL.get(kind, kind.lower() + 's')}/{metadata['name']}"
