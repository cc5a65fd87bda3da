"""Boxes as pods of a Kubernetes cluster: the only importer of the official client.

A pod is passive: its process 1 is a shell of the image with `remote_loop`'s text, reached by attach; a second shell is an exec.
Both are streams through the API server, so that no network of the cluster's is used and a worker may be anywhere. What a pod may
do is in `kubernetes_manifest`; what its status means, in `kubernetes_states`. Nothing outlives its owner: see `owners`; beside
that the cluster itself ends a pod at its deadline.

Where the cluster is: KUBECONFIG, else ~/.kube/config, else that of the pod this runs in. Which namespace: ENVFARM_NAMESPACE, else
that of the kubeconfig's context or of this pod, else `default`. What is needed there: see `NEEDED`.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from envfarm.backends import owners
from envfarm.backends.kubernetes_link import Access, Link, Refused
from envfarm.backends.kubernetes_manifest import enforcement, pod
from envfarm.backends.kubernetes_pod import PodStreams
from envfarm.backends.kubernetes_watch import PodWatch
from envfarm.backends.remote_backend import RemoteBackend
from envfarm.box import BoxSpec
from envfarm.errors import BoxUnavailableError, InfraError, MissingDependencyError

PATIENCE_S = 180.0
NEEDED = (
    ("create", "pods", ""),
    ("delete", "pods", ""),
    ("list", "pods", ""),
    ("watch", "pods", ""),
    ("get", "pods", "attach"),
    ("get", "pods", "exec"),
)
"""Verb, resource, subresource."""

_CALLS_AT_ONCE = 16
_TIMEOUT_S = (5, 60)  # to connect, to answer
_AGAIN_S = 1.0
_GONE_S = 30.0
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ApiError(Exception):
    """The API server refused (`status` as in HTTP), or did not answer (0)."""

    def __init__(self, status: int, said: str):
        super().__init__(status, said)
        self.status, self.said = status, said


def connect() -> tuple[Any, str]:
    """The official client's `Configuration` of the cluster that the environment names, and the namespace.

    Raises: MissingDependencyError, BoxUnavailableError.
    """
    try:
        import kubernetes
    except ModuleNotFoundError:
        needs = "the backend 'kubernetes' needs the official client: pip install 'envfarm[kubernetes]'"
        raise MissingDependencyError(needs) from None
    made = kubernetes.client.Configuration()
    made.connection_pool_maxsize = _CALLS_AT_ONCE
    file = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    namespace = os.environ.get("ENVFARM_NAMESPACE")
    try:
        if os.environ.get("KUBECONFIG") or os.path.exists(file):
            # the client looks at KUBECONFIG once, as it is imported
            kubernetes.config.load_kube_config(file, client_configuration=made, persist_config=False)
            context = kubernetes.config.list_kube_config_contexts(file)[1]["context"]
            return made, namespace or context.get("namespace") or "default"
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            kubernetes.config.load_incluster_config(made)
            return made, namespace or _POD_NAMESPACE.read_text()
    except (kubernetes.config.ConfigException, OSError, ValueError) as error:
        where = file if os.environ.get("KUBECONFIG") or os.path.exists(file) else "of this pod's service account"
        raise BoxUnavailableError(f"no box can be made: the kubeconfig {where} is of no use: {error}") from None
    raise BoxUnavailableError(
        "no box can be made: which cluster? Neither KUBECONFIG nor ~/.kube/config says so, and this is no pod. Set KUBECONFIG to "
        "the file that `kubectl` uses"
    )


def remove_left_over(owner: str | None) -> int:
    """For the reaper (see `reaper.main`). Pods that are still ending are found as well."""
    import kubernetes
    import urllib3

    count = 0
    try:
        configuration, namespace = connect()
        api = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))
        for one in _answer(api.list_namespaced_pod, namespace, label_selector=owners.BOX)["items"]:
            if owners.is_over(one["metadata"]["labels"], owner):
                count += 1
                if "deletionTimestamp" not in one["metadata"]:
                    _answer(api.delete_namespaced_pod, one["metadata"]["name"], namespace)
    except kubernetes.client.ApiException as error:
        return count if error.status == _NOT_FOUND else -1
    except (BoxUnavailableError, urllib3.exceptions.HTTPError, OSError):
        return -1
    return count


class KubernetesBackend(RemoteBackend):
    """`patience_s`: how long a box may wait for a quota, or for a node with room."""

    name = "kubernetes"
    module = __name__

    namespace: str
    link: Link
    watch: PodWatch

    def __init__(self, *, warm: int = 0, slack_s: float = owners.SLACK_S, patience_s: float = PATIENCE_S):
        super().__init__(warm=warm, slack_s=slack_s)
        self.patience_s = patience_s
        self.waiting: Counter[str] = Counter()
        """What boxes wait for just now, in the API server's words, and how many: a quota that is used up."""
        self._configuration: Any = None
        self._api: Any = None
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="kubernetes")
        self._probing = asyncio.Lock()

    async def probe(self) -> None:
        """Raises BoxUnavailableError, MissingDependencyError."""
        async with self._probing:
            if self._api is not None:
                return
            loop = asyncio.get_running_loop()
            self._configuration, self.namespace = await loop.run_in_executor(self._threads, connect)
            import kubernetes

            client = kubernetes.client.ApiClient(self._configuration)
            await self._check_rights(kubernetes.client.AuthorizationV1Api(client))
            self.link = Link(self._access())
            mine = f"{owners.OWNER}={owners.owner_label()}"
            self.watch = PodWatch(self.link, self.namespace, mine)
            self._api = kubernetes.client.CoreV1Api(client)

    def enforcement(self) -> dict[str, str]:
        return {**enforcement(), **self._lifetime()}

    async def _disconnect(self) -> None:
        if self._api is not None:
            self._api = None
            await self.watch.close()
            await self._until_gone()
            await self.link.close()
        self._threads.shutdown(wait=False)

    def _streams(self, spec: BoxSpec, name: str) -> PodStreams:
        return PodStreams(self, pod(spec, owners.labels(name, self._deadline_s(spec)), self._deadline_s(spec)))

    # --- used by the pods -----------------------------------------------------------------------------------------

    async def admit(self, manifest: dict[str, Any]) -> None:
        """See `kubernetes_pod.Cluster`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.patience_s
        while True:
            creating = asyncio.ensure_future(self._call(self._api.create_namespaced_pod, self.namespace, manifest))
            try:
                await asyncio.shield(creating)
                return
            except asyncio.CancelledError:
                await asyncio.wait([creating])  # it cannot be called off
                raise
            except ApiError as error:
                said = error.said
                if error.status != _FORBIDDEN or "exceeded quota" not in said:
                    raise self._explained(error) from None
            if loop.time() > until:
                raise BoxUnavailableError(
                    f"no room for a box in namespace {self.namespace!r} in {self.patience_s:.0f} s: {said}. Raise the quota, run "
                    "fewer episodes at once, or see who else holds boxes (`kubectl get pods -l envfarm.box`)"
                )
            self.waiting[said] += 1
            try:
                await asyncio.sleep(_AGAIN_S)
            finally:
                self.waiting[said] -= 1
                self.waiting += Counter()  # drops what nobody waits for

    async def delete(self, name: str) -> None:
        """See `kubernetes_pod.Cluster`."""
        try:
            await self._call(self._api.delete_namespaced_pod, name, self.namespace)
        except ApiError as error:
            self.left += error.status != _NOT_FOUND

    # --- talking to the API server --------------------------------------------------------------------------------

    async def _call(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """The official client blocks, and its errors stay here. Raises: ApiError."""
        import kubernetes
        import urllib3

        def work() -> dict[str, Any]:
            try:
                return _answer(function, *args)
            except kubernetes.client.ApiException as error:
                raise ApiError(error.status or 0, _message(error.body) or str(error.reason)) from None
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise ApiError(0, str(error)) from None

        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _check_rights(self, reviews: Any) -> None:
        """Raises: BoxUnavailableError."""

        async def may(verb: str, resource: str, subresource: str) -> bool:
            asked = {"namespace": self.namespace, "verb": verb, "resource": resource, "subresource": subresource}
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            return (await self._call(reviews.create_self_subject_access_review, body))["status"]["allowed"]

        try:
            allowed = await asyncio.gather(*(may(*needed) for needed in NEEDED))
        except ApiError as error:
            raise self._explained(error) from None
        missing = [
            f"{verb} {'/'.join(filter(None, what))}" for (verb, *what), may_do in zip(NEEDED, allowed, strict=True) if not may_do
        ]
        if missing:
            raise BoxUnavailableError(
                f"no box can be made: this user may not {', '.join(missing)} in namespace {self.namespace!r}. Ask for a Role "
                "with these verbs there, or name another namespace with ENVFARM_NAMESPACE"
            )

    def _explained(self, error: ApiError) -> BoxUnavailableError | InfraError:
        """As whoever asked sees it: what a person must mend, or what may pass."""
        host = self._configuration.host
        if error.status == 0:
            return BoxUnavailableError(
                f"no box can be made: no API server answers at {host}. Start the cluster, or set KUBECONFIG to one that runs. "
                f"Said: {error.said}"
            )
        if error.status == _UNAUTHORIZED or "system:anonymous" in error.said:
            return BoxUnavailableError(
                f"no box can be made: the API server at {host} does not know this user: the token of the kubeconfig is missing, "
                f"wrong or expired. Said: {error.said}"
            )
        if error.status in (_FORBIDDEN, _NOT_FOUND, 400, 422):
            return BoxUnavailableError(f"no box can be made in namespace {self.namespace!r}: {error.said}")
        return InfraError(f"the API server could not make a box: {error.status} {error.said}")

    def _access(self) -> Access:
        of = self._configuration
        tls = None
        if of.host.startswith("https"):
            tls = ssl.create_default_context(cafile=of.ssl_ca_cert)
            if of.cert_file:
                tls.load_cert_chain(of.cert_file, of.key_file)
            if not of.verify_ssl:
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE

        async def headers() -> dict[str, str]:
            settings = await asyncio.get_running_loop().run_in_executor(self._threads, of.auth_settings)
            return {one["key"]: one["value"] for one in settings.values() if one["in"] == "header"}

        return Access(of.host, tls, of.tls_server_name, of.proxy, headers)

    async def _until_gone(self) -> None:
        """A pod that was deleted is there until its node has ended it."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        loop = asyncio.get_running_loop()
        until = loop.time() + _GONE_S
        try:
            while (await self.link.get(path, [("labelSelector", f"{owners.OWNER}={owners.owner_label()}"), ("limit", "1")]))[
                "items"
            ]:
                if loop.time() > until:
                    self.left += 1
                    return
                await asyncio.sleep(_AGAIN_S / 4)
        except Refused:
            self.left += 1


def _answer(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Undecoded by the client, whose models refuse what older and newer servers say."""
    return json.loads(function(*args, _request_timeout=_TIMEOUT_S, _preload_content=False, **kwargs).data)


def _message(body: str | None) -> str:
    try:
        return json.loads(body or "")["message"]
    except (ValueError, KeyError, TypeError):
        return body or ""
