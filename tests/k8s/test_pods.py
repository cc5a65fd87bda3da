"""A rendered farm in a live cluster: keeper and worker come up as restricted as they are, and reach what they may and no more.

What a NetworkPolicy forbids is not tried: the test bed's network does not enforce it.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from envfarm.farm.file import FarmFile
from envfarm.farm.manifests import render, token_secret
from tests.k8s.cluster import UNKNOWN_TO_1_20, create, kubectl
from tests.k8s.places import Object

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(600)]
IMAGE = "envfarm/worker:latest"
ASK = """
import json, os, ssl, sys, urllib.error, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount"
tls = ssl.create_default_context(cafile=f"{account}/ca.crt")
api = {"Authorization": "Bearer " + open(f"{account}/token").read()}
def status(method, url, headers):
    url = url.replace("API", "https://" + os.environ["KUBERNETES_SERVICE_HOST"]).replace("KEEPER", os.environ["KEEPER"])
    try:
        asked = urllib.request.Request(url, headers=headers, method=method, data=b"{}" if method == "POST" else None)
        return urllib.request.urlopen(asked, timeout=20, context=tls if url.startswith("https") else None).status
    except urllib.error.HTTPError as error:
        return error.code
os.environ["KEEPER"] = os.environ.get("ENVFARM_KEEPER", "http://127.0.0.1:7077/").split("/pools")[0].rstrip("/")
mine = {"X-Envfarm-Token": os.environ["ENVFARM_TOKEN"]}
kinds = {"api": api, "token": mine, "nothing": {}}
found = {f"{method} {url}": status(method, url, kinds[kind]) for method, url, kind in json.loads(sys.argv[1])}
try:
    open("/anything", "w")
except OSError as error:
    found["write"] = error.strerror
print(json.dumps({**found, "uid": os.getuid()}))
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """Of a farm that is up."""
    nodes = json.loads(kubectl("get", "nodes", "-o", "json").stdout)["items"]
    if not any(IMAGE in name for node in nodes for image in node["status"]["images"] for name in image["names"]):
        pytest.skip(f"no node has {IMAGE}: k8s/testbed/worker-image.sh puts it there")
    name = f"farm-{secrets.token_hex(3)}"
    pool = {"environments": ["games/*"], "workers": 1, "boxes": {"max": 2}}
    farm = FarmFile.model_validate(
        {"envfarm": 1, "farm": "lab", "pools": [pool], "target": {"kubernetes": {"namespace": name, "image": IMAGE}}}
    )
    made = [small(one) for one in render(farm) if one["kind"] not in UNKNOWN_TO_1_20]
    try:
        create(*[one for one in made if one["kind"] == "Namespace"], token_secret(farm, "sesame"), dry=False)
        create(*[one for one in made if one["kind"] != "Namespace"], dry=False)
        for deployment in ("keeper", "worker-0"):
            done = kubectl("-n", name, "rollout", "status", f"deployment/{deployment}", "--timeout=240s")
            assert done.returncode == 0, f"{done.stderr}\n{kubectl('-n', name, 'describe', 'pods').stdout[-4000:]}"
        yield name
    finally:
        kubectl("delete", "namespace", "--wait=false", name, f"{name}-boxes")


def small(one: Object) -> Object:
    made = copy.deepcopy(one)
    if one["kind"] == "Deployment":
        (container,) = made["spec"]["template"]["spec"]["containers"]
        container["imagePullPolicy"] = "Never"
        container["resources"]["requests"] = {"cpu": "10m", "memory": "64Mi"}
    return made


def asked(namespace: str, deployment: str, *questions: tuple[str, str, str]) -> dict[str, Any]:
    """Answers from inside of a pod: HTTP status by method and URL."""
    done = kubectl("-n", namespace, "exec", f"deployment/{deployment}", "--", "python3", "-c", ASK, json.dumps(questions))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_worker_reaches_the_keeper_and_may_only_use_boxes(namespace: str) -> None:
    boxes, home = (f"API/api/v1/namespaces/{name}" for name in (f"{namespace}-boxes", namespace))
    assert asked(
        namespace, "worker-0",
        ("GET", "KEEPER/status", "token"), ("GET", "KEEPER/workers", "nothing"),
        ("GET", f"{boxes}/pods/none/exec?command=ls", "api"), ("GET", f"{boxes}/pods/none/attach", "api"),
        ("GET", f"{boxes}/pods", "api"), ("POST", f"{boxes}/pods", "api"),
        ("GET", f"{home}/secrets/farm-token", "api"), ("GET", f"{home}/pods/none/exec?command=ls", "api"),
        ("GET", f"API/apis/coordination.k8s.io/v1/namespaces/{namespace}-boxes/leases", "api"),
    ) == {
        "GET KEEPER/status": 200, "GET KEEPER/workers": 401,
        f"GET {boxes}/pods/none/exec?command=ls": 404, f"GET {boxes}/pods/none/attach": 404,
        f"GET {boxes}/pods": 403, f"POST {boxes}/pods": 403,
        f"GET {home}/secrets/farm-token": 403, f"GET {home}/pods/none/exec?command=ls": 403,
        f"GET API/apis/coordination.k8s.io/v1/namespaces/{namespace}-boxes/leases": 403,
        "write": "Read-only file system", "uid": 1000,
    }  # fmt: skip


def test_the_keeper_sees_boxes_leases_and_workers_and_no_secret(namespace: str) -> None:
    boxes, home = (f"API/api/v1/namespaces/{name}" for name in (f"{namespace}-boxes", namespace))
    apps = f"API/apis/apps/v1/namespaces/{namespace}/deployments"
    leases = f"API/apis/coordination.k8s.io/v1/namespaces/{namespace}-boxes/leases"
    assert asked(
        namespace, "keeper",
        ("GET", f"{boxes}/pods", "api"), ("GET", leases, "api"), ("GET", f"{home}/pods", "api"),
        ("GET", f"{apps}/worker-0/scale", "api"), ("GET", f"{apps}/keeper/scale", "api"),
        ("GET", f"{home}/secrets/farm-token", "api"), ("POST", f"{home}/pods", "api"),
    ) == {
        f"GET {boxes}/pods": 200, f"GET {leases}": 200, f"GET {home}/pods": 200,
        f"GET {apps}/worker-0/scale": 200, f"GET {apps}/keeper/scale": 403,
        f"GET {home}/secrets/farm-token": 403, f"POST {home}/pods": 403,
        "write": "Read-only file system", "uid": 1000,
    }  # fmt: skip
