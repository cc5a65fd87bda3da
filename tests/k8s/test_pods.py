"""A farm in a live cluster: keeper and worker come up as restricted as they are, and reach what they may and no more.

What a NetworkPolicy forbids is not tried: the test bed's network does not enforce it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.k8s.live import LiveFarm
from tests.testbed import kubectl

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("farm in pods")]
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


def asked(namespace: str, deployment: str, *questions: tuple[str, str, str]) -> dict[str, Any]:
    """Answers from inside of a pod: HTTP status by method and URL."""
    command = ("-n", namespace, "exec", f"deployment/{deployment}", "--", "python3", "-c", ASK, json.dumps(questions))
    return json.loads(kubectl(*command))


def test_a_worker_reaches_the_keeper_and_may_only_use_boxes(farm: LiveFarm) -> None:
    namespace = farm.name
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


def test_the_keeper_sees_boxes_leases_and_workers_and_no_secret(farm: LiveFarm) -> None:
    namespace = farm.name
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
