"""Boxes as pods of a Kubernetes cluster.

A pod is passive: its process 1 is a shell of the image with `remote_loop`'s text, reached by attach; a second shell is an exec.
Both are streams through the API server, so that no network of the cluster's is used and a worker may be anywhere. What a pod may
do is in `kubernetes_manifest`; what its status means, in `kubernetes_states`; which cluster it is, in `kubernetes_api`. Nothing
outlives its owner: see `owners`; beside that the cluster itself ends a pod at its deadline.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Set
from contextlib import suppress
from typing import Any

from envfarm.backends import kubernetes_states as states
from envfarm.backends import owners
from envfarm.backends.kubernetes_api import CONFLICT, FORBIDDEN, NEEDED, NOT_FOUND, TO_USE, Api, ApiError, ask, connect, pods_of
from envfarm.backends.kubernetes_link import Link, Refused
from envfarm.backends.kubernetes_manifest import enforcement, pod
from envfarm.backends.kubernetes_pod import AttachedPod, PodStreams
from envfarm.backends.kubernetes_watch import PodWatch
from envfarm.backends.remote_backend import PATIENCE_S, RemoteBackend, patience_of
from envfarm.box import BoxSpec
from envfarm.errors import BoxUnavailableError, InfraError, NoRoomError

OUTAGE_S = 180.0
_AGAIN_S = 1.0
_PASSING = re.compile("exceeded quota|not yet ready to handle request")
"""What the API server forbids for now: it says the second where it has just come up."""
_GONE_S = 30.0  # for a pod that takes longer to end, nobody could do more


def remove_left_over(owner: str | None, names: Set[str] = frozenset()) -> int:
    """For the reaper (see `reaper.main`). Pods that are still ending are found as well; objects of those that have ended are
    removed, as `KubernetesBackend.delete` does."""
    count = 0
    try:
        configuration, namespace = connect()
        pods = pods_of(configuration)
        for one in ask(pods.list_namespaced_pod, namespace, label_selector=owners.BOX)["items"]:
            if owners.is_over(one["metadata"]["labels"], owner, names):
                count += 1
                if "deletionTimestamp" not in one["metadata"]:
                    ask(pods.delete_namespaced_pod, one["metadata"]["name"], namespace)
                elif states.ended(one):
                    ask(pods.delete_namespaced_pod, one["metadata"]["name"], namespace, grace_period_seconds=0)
    except ApiError as error:
        return count if error.status == NOT_FOUND else -1
    except BoxUnavailableError:
        return -1
    return count


class KubernetesBackend(RemoteBackend):
    """`patience_s`: how long a box may wait for a quota, or for a node with room, at most; whoever asked may ask again. Who
    `makes` none needs no right to. `outage_s`: the same for an API server that does not answer. `owner`: whose the boxes are,
    where that is not this process: they outlive it, and are found again by the next one.

    `close` returns once the processes of all boxes have ended, as their nodes say, and their pods are gone from the API server;
    a node may still be unmounting their tmpfs. It waits `_GONE_S` at most, which is for a node that does not answer."""

    name = "kubernetes"
    module = __name__

    namespace: str
    link: Link
    watch: PodWatch

    def __init__(
        self, *, warm: int = 0, slack_s: float = owners.SLACK_S, patience_s: float = PATIENCE_S,
        outage_s: float = OUTAGE_S, makes: bool = True, owner: str = "",
    ):  # fmt: skip
        super().__init__(warm=warm, slack_s=slack_s, makes=makes)
        self._patience_s, self._outage_s, self._owner = patience_s, outage_s, owner
        self.waiting: Counter[str] = Counter()
        """What boxes wait for just now, and how many: a quota that is used up, in the API server's words, or that server."""
        self._api = Api()
        self._connected = False
        self._probing = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    async def probe(self) -> None:
        """Raises BoxUnavailableError, MissingDependencyError."""
        async with self._probing:
            if self._connected:
                return
            await self._api.connect(NEEDED if self._makes else TO_USE)
            self.namespace = self._api.namespace
            self.link = Link(self._api.access())
            self.watch = PodWatch(self.link, self.namespace, self._mine)
            self._connected = True

    def enforcement(self) -> dict[str, str]:
        return {**enforcement(), **self._lifetime()}

    async def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            if self._owner:
                for task in self._ending:
                    task.cancel()
            await asyncio.gather(*self._ending, return_exceptions=True)
            await self.watch.close()
            await self.link.close()
        self._api.close()

    def _streams(self, spec: BoxSpec, name: str) -> PodStreams:
        labels = owners.labels(name, self._deadline_s(spec), self._owner)
        return PodStreams(self, pod(spec, labels, self._deadline_s(spec)), patience_of(spec, self._patience_s))

    def attached(self, spec: BoxSpec, name: str) -> AttachedPod:
        return AttachedPod(self, name)

    async def live(self) -> set[str]:
        try:
            found = (await self.link.get(f"/api/v1/namespaces/{self.namespace}/pods", [("labelSelector", self._mine)]))["items"]
        except Refused as refused:
            raise InfraError(f"the API server does not tell of pods: {refused.said}") from None
        return {p["metadata"]["name"] for p in found if states.running(p) and "deletionTimestamp" not in p["metadata"]}

    @property
    def _mine(self) -> str:
        return f"{owners.OWNER}={self._owner or owners.owner_label()}"

    # --- used by the pods -----------------------------------------------------------------------------------------

    async def admit(self, manifest: dict[str, Any], patience_s: float) -> None:
        """See `kubernetes_pod.Cluster`."""
        loop = asyncio.get_running_loop()
        began, again = loop.time(), False
        while (why := await self._not_admitted(manifest, again=again)) is not None:
            if loop.time() - began > (self._outage_s if why.status == 0 else patience_s):
                raise self._given_up(why, patience_s)
            again = True
            self.waiting[why.said] += 1
            try:
                await asyncio.sleep(_AGAIN_S)
            finally:
                self.waiting[why.said] -= 1
                self.waiting += Counter()  # drops what nobody waits for

    async def _not_admitted(self, manifest: dict[str, Any], *, again: bool) -> ApiError | None:
        """Ask for a pod: what it has to wait for, or None where it is there. Raises: BoxUnavailableError, InfraError."""
        creating = asyncio.ensure_future(self._api.create(manifest))
        try:
            await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait([creating])  # it cannot be called off
            raise
        except ApiError as error:
            if error.status == 0 or (error.status == FORBIDDEN and _PASSING.search(error.said)):
                return error
            if error.status == CONFLICT and again:  # the answer to the last question was lost
                return None
            raise self._api.explained(error) from None
        return None

    def _given_up(self, why: ApiError, patience_s: float) -> BoxUnavailableError | InfraError:
        if why.status == 0:
            return InfraError(f"the API server has not answered for {self._outage_s:.0f} s: {why.said}")
        return NoRoomError(
            f"no room for a box in namespace {self.namespace!r} in {patience_s:.0f} s: {why.said}. Raise the quota, run "
            f"fewer episodes at once, or see who else holds boxes (`kubectl -n {self.namespace} get pods -l envfarm.box`)"
        )

    async def delete(self, name: str) -> None:
        """See `kubernetes_pod.Cluster`."""
        try:
            await self._api.delete(name)
        except ApiError as error:
            if error.status != NOT_FOUND:
                self.leave(name)
        else:
            task = asyncio.ensure_future(self._see_off(name))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _see_off(self, name: str) -> None:
        """Until a deleted pod is gone: its node has ended its processes, which takes a second or two. The object would be there
        until the node has tidied up behind them as well (old ones look every 10 s), and is removed here."""
        pod = await self.watch.until(name, lambda pod: pod is None or states.ended(pod), _GONE_S)
        if pod is not None and states.ended(pod):
            with suppress(ApiError):  # then the node removes it, later
                await self._api.forget(name)
