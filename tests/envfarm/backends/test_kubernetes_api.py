"""The Kubernetes backend against an API server that does as it is told: streams, rights, quotas, and what cannot come up."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from envfarm.backends.kubernetes import KubernetesBackend, remove_left_over
from envfarm.backends.kubernetes_api import NAMESPACE_VARIABLE
from envfarm.backends.kubernetes_link import Access, Link, Refused
from envfarm.backends.local import backend_class
from envfarm.errors import BoxUnavailableError, InfraError, MissingDependencyError, NoRoomError
from envfarm.testing.backend_checks import SMALL
from tests.envfarm.backends.scripted_cluster import KUBECONFIG, ScriptedCluster, refusal

T = TypeVar("T")
needs_client = pytest.mark.skipif(find_spec("kubernetes") is None, reason="pip install 'envfarm[kubernetes]'")
_RUNNING = {"phase": "Running", "containerStatuses": [{"name": "box", "state": {"running": {}}}]}
_ENDED = {"phase": "Failed", "containerStatuses": [{"name": "box", "state": {"terminated": {"containerID": "containerd://1"}}}]}
QUOTA = 'pods "box-1" is forbidden: exceeded quota: boxes, requested: pods=1, used: pods=2, limited: pods=2'


def with_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[ScriptedCluster, KubernetesBackend], Awaitable[T]],
    **options: float,
) -> T:
    async def main() -> T:
        cluster = ScriptedCluster()
        async with cluster.serving(tmp_path) as kubeconfig:
            monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
            backend = KubernetesBackend(**options)
            try:
                return await use(cluster, backend)
            finally:
                await backend.close()
                assert cluster.pods == {}  # nothing is left, whatever happened

    return asyncio.run(main())


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_binary_safe_in_both_directions(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096

    async def main() -> tuple[bytes, bytes]:
        cluster = ScriptedCluster()
        async with cluster.serving(tmp_path) as kubeconfig:
            link = Link(_access(kubeconfig))
            pipe = await link.stream("/api/v1/namespaces/lab/pods/box/attach", [("stdin", "true")])
            out, err, ended = bytearray(), bytearray(), asyncio.Event()
            pipe.listen(out.extend, err.extend, ended.set)
            for at in range(0, len(data), 100_000):
                pipe.send(data[at : at + 100_000])
            while len(err) < len(data):
                await asyncio.sleep(0)
            pipe.send(b"end")
            await ended.wait()
            pipe.send(b"forgotten")
            pipe.close()
            pipe.close()
            await link.close()
            return bytes(out), bytes(err)

    assert asyncio.run(main()) == (data, data)


def _access(kubeconfig: Path) -> Access:
    async def headers() -> dict[str, str]:
        return {}

    url = kubeconfig.read_text().split('server: "')[1].split('"')[0]
    return Access(url, None, None, None, headers)


def test_a_refused_stream_says_the_status(tmp_path: Path) -> None:
    async def main() -> int:
        cluster = ScriptedCluster()
        cluster.refuse = lambda what: refusal(404, "no pod")
        async with cluster.serving(tmp_path) as kubeconfig:
            link = Link(_access(kubeconfig))
            try:
                await link.stream("/api/v1/namespaces/lab/pods/box/exec", [])
            except Refused as refused:
                return refused.status
            finally:
                await link.close()
        return -1

    assert asyncio.run(main()) == 404


# --- what a person must mend ------------------------------------------------------------------------------------------


@needs_client
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            {"phase": "Pending", "containerStatuses": [{"name": "box", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
            "no node of the cluster has or can get the image 'envfarm/base' .ErrImagePull",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "1 Insufficient memory."}
                ],
            },
            "no node has had room for a box .* memory 100663296.*: 1 Insufficient memory",
        ),
    ],
)
def test_a_box_that_cannot_come_up_says_why(
    status: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.becomes = [status]
        with pytest.raises(BoxUnavailableError, match=said):
            await backend.start(SMALL)

    with_cluster(tmp_path, monkeypatch, use, patience_s=0.5)


@needs_client
def test_a_box_whose_node_dies_as_it_comes_up_is_an_infra_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.becomes = [{"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}]
        with pytest.raises(InfraError, match="evicted it: The node was low on resource: memory"):
            await backend.start(SMALL)

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_a_quota_that_is_used_up_is_waited_for_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        full = asyncio.Event()

        def refuse(what: str) -> object:
            if what != "create" or full.is_set():
                return None
            return refusal(403, QUOTA)

        cluster.refuse = refuse  # type: ignore[assignment]
        cluster.becomes = [{"phase": "Failed", "reason": "Evicted", "message": "admitted at last"}]
        starting = asyncio.ensure_future(backend.start(SMALL))
        while not backend.waiting:
            await asyncio.sleep(0.01)
        assert backend.waiting == {QUOTA: 1}
        full.set()
        with pytest.raises(InfraError, match="admitted at last"):
            await starting
        assert not backend.waiting

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_an_api_server_that_has_just_come_up_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        said = [refusal(403, "pods box is forbidden: not yet ready to handle request")]
        cluster.refuse = lambda what: said.pop() if what == "create" and said else None
        await backend.probe()
        bare = backend.bare(SMALL)
        cluster.pods[bare.name] = {"metadata": {"name": bare.name}, "status": _RUNNING}  # by the first question, after all
        await bare.made.create()
        assert cluster.seen.count("create") == 2
        await bare.made.remove()

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_a_quota_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.refuse = lambda what: refusal(403, QUOTA) if what == "create" else None
        with pytest.raises(BoxUnavailableError, match=r"no room for a box in namespace 'lab'.*pods=2. Raise the quota"):
            await backend.start(SMALL)

    with_cluster(tmp_path, monkeypatch, use, patience_s=0.0)


@needs_client
def test_a_quota_is_told_of_before_the_episodes_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.refuse = lambda what: refusal(403, QUOTA) if what == "create" else None
        short = msgspec.structs.replace(SMALL, lifetime_s=20.0)
        async with asyncio.timeout(short.lifetime_s):
            with pytest.raises(NoRoomError, match=r"in 5 s: .*exceeded quota: boxes"):
                await backend.start(short)

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
@pytest.mark.parametrize(
    ("missing", "said"),
    [(("create", "pods", ""), "may not create pods in namespace 'lab'"), (("get", "pods", "exec"), "may not get pods/exec")],
)
def test_a_missing_right_is_named(
    missing: tuple[str, str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.may = lambda asked: (asked["verb"], asked["resource"], asked.get("subresource", "")) != missing
        with pytest.raises(BoxUnavailableError, match=said):
            await backend.start(SMALL)
        assert "create" not in cluster.seen

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
@pytest.mark.parametrize("what", ["attach", "exec"])
def test_a_forbidden_stream_names_its_verbs(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.becomes = [_RUNNING]
        cluster.refuse = lambda asked: refusal(403, "no") if asked == what else None
        with pytest.raises(BoxUnavailableError, match=f"verbs get and create on pods/{what} in namespace 'lab'"):
            await backend.start(SMALL)

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_an_object_goes_when_its_processes_have_ended_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the node goes on to tidy up."""

    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.lingers = True
        cluster.becomes = [_RUNNING]
        await backend.probe()
        first, second = backend.bare(SMALL), backend.bare(SMALL)
        for bare in (first, second):
            await bare.made.create()
            await bare.made.remove()
        closing = asyncio.ensure_future(backend.close())
        cluster.set_status(first.name, _ENDED)
        while first.name in cluster.pods:
            await asyncio.sleep(0.01)
        assert list(cluster.pods) == [second.name] and not closing.done()
        cluster.set_status(second.name, _ENDED)
        await closing

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_a_reaper_removes_objects_of_what_has_ended_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.lingers = True
        cluster.becomes = [_RUNNING]
        await backend.probe()
        bare = backend.bare(SMALL)
        await bare.made.create()
        for _ in range(2):
            assert await asyncio.to_thread(remove_left_over, None, {bare.name}) == 1 and bare.name in cluster.pods
        cluster.set_status(bare.name, _ENDED)
        assert await asyncio.to_thread(remove_left_over, None, {bare.name}) == 1 and not cluster.pods
        assert await asyncio.to_thread(remove_left_over, None, {bare.name}) == 0

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_who_closes_waits_for_its_own_boxes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two backends of one process have one owner."""

    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.becomes = [_RUNNING]
        other = KubernetesBackend()
        try:
            for one in (backend, other):
                await one.probe()
            kept = other.bare(SMALL)
            await kept.made.create()
            async with asyncio.timeout(10):
                await backend.close()
            assert list(cluster.pods) == [kept.name]
            await kept.made.remove()
        finally:
            await other.close()

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_a_token_that_is_not_known_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.refuse = lambda what: refusal(401, "Unauthorized")
        with pytest.raises(BoxUnavailableError, match="does not know this user: the token of the kubeconfig is missing"):
            await backend.probe()

    with_cluster(tmp_path, monkeypatch, use)


def probe() -> None:
    async def main() -> None:
        backend = KubernetesBackend()
        try:
            await backend.probe()
        finally:
            await backend.close()

    asyncio.run(main())


@needs_client
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("", "file is empty"),
        ("clusters: [", "it is none: while parsing a flow node"),
        ("just words", "it is none: 'str' object"),
        ("apiVersion: v1\nkind: Config\n", "Expected key current-context"),
        (KUBECONFIG.format(port=1).replace("current-context: x", "current-context: y"), "Expected object with name y"),
    ],
)
def test_a_kubeconfig_of_no_use_is_named(text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    for namespace in ("", "lab"):
        monkeypatch.setenv(NAMESPACE_VARIABLE, namespace)
        with pytest.raises(BoxUnavailableError, match=f"the kubeconfig {file} is of no use: .*{said}") as raised:
            probe()
        assert "Set KUBECONFIG to the file that `kubectl` uses" in str(raised.value)


@needs_client
def test_a_namespace_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(cluster: ScriptedCluster, backend: KubernetesBackend) -> None:
        cluster.refuse = lambda what: refusal(404, 'namespaces "lab" not found') if what == "create" else None
        with pytest.raises(BoxUnavailableError, match=r'"lab" not found. `kubectl create namespace lab`'):
            await backend.start(SMALL)

    with_cluster(tmp_path, monkeypatch, use)


@needs_client
def test_without_a_cluster_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    file.write_text(KUBECONFIG.format(port=1))
    with pytest.raises(BoxUnavailableError, match=r"no API server answers at http://127.0.0.1:1[.] Start the cluster"):
        probe()
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BoxUnavailableError, match="Set KUBECONFIG to the file that `kubectl` uses"):
        probe()


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    with pytest.raises(MissingDependencyError, match=r"pip install 'envfarm\[kubernetes\]'"):
        probe()


def test_it_is_found_by_name_and_says_what_a_cluster_may_not_enforce() -> None:
    assert backend_class("kubernetes") is KubernetesBackend
    told = KubernetesBackend().enforcement()
    assert "where the cluster's network plugin enforces it" in told["network"] and "podPidsLimit" in told["pids"]
