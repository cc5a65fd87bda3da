"""The official client of Kubernetes, which only this file imports: which cluster, who asks, and what a refusal means.

Where the cluster is: KUBECONFIG, else ~/.kube/config, else that of the pod this runs in. Which namespace: ENVFARM_NAMESPACE, else
that of the kubeconfig's context or of this pod, else `default`. What is needed there: see `NEEDED`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from envfarm.backends.kubernetes_link import Access
from envfarm.errors import BoxUnavailableError, InfraError, MissingDependencyError

TO_USE = (("get", "pods", "attach"), ("get", "pods", "exec"))
NEEDED = (("create", "pods", ""), ("delete", "pods", ""), ("list", "pods", ""), ("watch", "pods", ""), *TO_USE)
"""Verb, resource, subresource: for boxes that somebody made, and for making them, too."""

NAMESPACE_VARIABLE = "ENVFARM_NAMESPACE"

FORBIDDEN, NOT_FOUND, CONFLICT = 403, 404, 409
_UNAUTHORIZED = 401
_CALLS_AT_ONCE = 16
_TIMEOUT_S = (5, 60)  # to connect, to answer
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
    namespace = os.environ.get(NAMESPACE_VARIABLE)
    if os.environ.get("KUBECONFIG") or os.path.exists(file):
        of_context = _load(file, made)
        return made, namespace or of_context
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            kubernetes.config.load_incluster_config(made)
            return made, namespace or _POD_NAMESPACE.read_text()
    except (kubernetes.config.ConfigException, OSError) as error:
        raise BoxUnavailableError(f"the service account of this pod is of no use: {error}") from None
    raise BoxUnavailableError(
        "which cluster? Neither KUBECONFIG nor ~/.kube/config says so, and this is no pod. Set KUBECONFIG to the file that "
        "`kubectl` uses"
    )


def _load(file: str, configuration: Any) -> str:
    """Read a kubeconfig, or several with colons between; returns the namespace of its context. Raises: BoxUnavailableError."""
    import kubernetes

    try:
        if os.pathsep not in file:
            open(file).close()  # the client does not say that it is not there, or may not be read
        # the client looks at KUBECONFIG once, as it is imported
        kubernetes.config.load_kube_config(file, client_configuration=configuration, persist_config=False)
        return kubernetes.config.list_kube_config_contexts(file)[1]["context"].get("namespace") or "default"
    except Exception as error:  # the client checks no types: what is no kubeconfig raises whatever comes of that
        told = isinstance(error, kubernetes.config.ConfigException)
        said = error.strerror if isinstance(error, OSError) else f"{'' if told else 'it is none: '}{' '.join(str(error).split())}"
        raise BoxUnavailableError(
            f"the kubeconfig {file} is of no use: {said}. Set KUBECONFIG to the file that `kubectl` uses"
        ) from None


def pods_of(configuration: Any) -> Any:
    """The client's calls about pods."""
    import kubernetes

    return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))


def ask(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A call of the official client, which blocks, and whose errors stay here. Its answer is not decoded by the client, whose
    models refuse what older and newer servers say. Raises: ApiError."""
    import kubernetes
    import urllib3

    try:
        return json.loads(function(*args, _request_timeout=_TIMEOUT_S, _preload_content=False, **kwargs).data)
    except kubernetes.client.ApiException as error:
        raise ApiError(error.status or 0, _message(error.body) or str(error.reason)) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ApiError(0, str(error)) from None


class Api:
    """The API server for one backend. Raises, beside what is said: ApiError."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="kubernetes")
        self._configuration: Any = None
        self._pods: Any = None
        self.namespace = ""

    async def connect(self, needed: Sequence[tuple[str, str, str]] = NEEDED) -> None:
        """Also finds out whether this user may do what is needed. Raises: BoxUnavailableError, MissingDependencyError."""
        loop = asyncio.get_running_loop()
        self._configuration, self.namespace = await loop.run_in_executor(self._threads, connect)
        await self._check_rights(needed)
        self._pods = pods_of(self._configuration)

    async def create(self, manifest: dict[str, Any]) -> None:
        await self._call(self._pods.create_namespaced_pod, self.namespace, manifest)

    async def delete(self, name: str) -> None:
        """Its node ends it in its own time."""
        await self._call(self._pods.delete_namespaced_pod, name, self.namespace)

    async def forget(self, name: str) -> None:
        """Remove the object alone, whatever becomes of the pod: of one that has ended."""
        await self._call(functools.partial(self._pods.delete_namespaced_pod, grace_period_seconds=0), name, self.namespace)

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def _call(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask, function, *args)

    async def _check_rights(self, needed: Sequence[tuple[str, str, str]]) -> None:
        """Raises: BoxUnavailableError, InfraError."""
        import kubernetes

        reviews = kubernetes.client.AuthorizationV1Api(kubernetes.client.ApiClient(self._configuration))

        async def may(verb: str, resource: str, subresource: str) -> bool:
            asked = {"namespace": self.namespace, "verb": verb, "resource": resource, "subresource": subresource}
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            return (await self._call(reviews.create_self_subject_access_review, body))["status"]["allowed"]

        try:
            allowed = await asyncio.gather(*(may(*one) for one in needed))
        except ApiError as error:
            raise self.explained(error) from None
        missing = [
            f"{verb} {'/'.join(filter(None, what))}" for (verb, *what), may_do in zip(needed, allowed, strict=True) if not may_do
        ]
        if missing:
            raise BoxUnavailableError(
                f"no box can be made: this user may not {', '.join(missing)} in namespace {self.namespace!r}. Ask for a Role "
                "with these verbs there, or name another namespace with ENVFARM_NAMESPACE"
            )

    def explained(self, error: ApiError) -> BoxUnavailableError | InfraError:
        """As whoever asked for a box sees it: what a person must mend, or what may pass."""
        if (unheard := self.unheard(error.status, error.said)) is not None:
            return unheard
        if error.status == NOT_FOUND:
            return BoxUnavailableError(no_namespace(self.namespace, error.said))
        if error.status in (FORBIDDEN, 400, 422):
            return BoxUnavailableError(f"no box can be made in namespace {self.namespace!r}: {error.said}")
        return InfraError(f"the API server could not make a box: {error.status} {error.said}")

    def unheard(self, status: int, said: str) -> BoxUnavailableError | None:
        """Where nobody answers, or whoever asks is not known: whatever was asked for."""
        host = self._configuration.host
        if status == 0:
            return BoxUnavailableError(
                f"no API server answers at {host}. Start the cluster, or set KUBECONFIG to one that runs. Said: {said}"
            )
        if status == _UNAUTHORIZED or "system:anonymous" in said:
            return BoxUnavailableError(
                f"the API server at {host} does not know this user: the token of the kubeconfig is missing, wrong or expired. "
                f"Said: {said}"
            )
        return None

    def access(self) -> Access:
        """For streams and watches."""
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


def no_namespace(name: str, said: str) -> str:
    return f"no box can be made in namespace {name!r}: {said}. `kubectl create namespace {name}`, or name another"


def _message(body: str | None) -> str:
    try:
        return json.loads(body or "")["message"]
    except (ValueError, KeyError, TypeError):
        return body or ""
