"""The pods that are trusted - the keeper's and the workers' - and what makes and serves them.

They run the worker's image (`envfarm.images.worker`) with no right to anything but their token's, read-only but for a /tmp of
limited size, and are restarted by the cluster. Boxes are no matter of these files: the keeper makes them, see
`envfarm.backends.kubernetes_manifest`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import yaml

from envfarm.farm import KEEPER_PORT, KEEPER_VARIABLE, TOKEN_VARIABLE, WORKER_PORT
from envfarm.farm.file import FarmFile
from envfarm.farm.manifests.names import KEEPER, WORKER, made, selector, target_of, worker_name
from envfarm.farm.manifests.token import token_variable

UID = 1000
CONFIG_FOLDER, FARM_YAML = "/etc/envfarm", "FARM.yaml"
_BOXES_VARIABLE = "ENVFARM_NAMESPACE"  # see `envfarm.backends.kubernetes_api`
_RESOURCES = {
    KEEPER: {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
    WORKER: {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
}
_TMP_SIZE = "2Gi"
_START_S, _STEP_S = 300, 5
"""How long the first start may take: imports, and environments with much data."""


def config(farm: FarmFile) -> dict[str, Any]:
    """FARM.yaml for the keeper."""
    return made("ConfigMap", "farm", farm, data={FARM_YAML: _farm_yaml(farm)})


def keeper(farm: FarmFile) -> dict[str, Any]:
    """There is never a second one: the old one is gone before a new one starts."""
    container = {
        "command": ["python3", "-m", "envfarm.farm"],
        "args": [f"{CONFIG_FOLDER}/{FARM_YAML}", "--listen", f"0.0.0.0:{KEEPER_PORT}"],
        **_probed({"tcpSocket": {"port": KEEPER_PORT}}),
    }
    mounted = {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}
    template = _template(farm, KEEPER, selector(farm, KEEPER), KEEPER_PORT, container, [mounted])
    template["metadata"]["annotations"] = {"envfarm.farm/config": hashlib.sha256(_farm_yaml(farm).encode()).hexdigest()[:12]}
    template["spec"]["volumes"].append({"name": "config", "configMap": {"name": "farm"}})
    return _deployment(farm, KEEPER, 1, selector(farm, KEEPER), template, {"type": "Recreate"})


def workers(farm: FarmFile, pool: int) -> dict[str, Any]:
    """Of one pool. They find the keeper by its Service, whose address the cluster puts into their environment, so that they need
    no name server; and boxes through it."""
    patterns = [word for pattern in farm.pools[pool].environments for word in ("--env", pattern)]
    container = {
        "args": [
            *patterns, "--host", "0.0.0.0", "--port", str(WORKER_PORT), "--bundles", "/tmp/bundles", "--backend", "farm",
        ],
        **_probed({"httpGet": {"path": "/health", "port": WORKER_PORT}}),
    }  # fmt: skip
    labels = selector(farm, WORKER, pool)
    template = _template(farm, WORKER, labels, WORKER_PORT, container, [])
    url = f"http://$({KEEPER.upper()}_SERVICE_HOST):{KEEPER_PORT}/pools/{pool}"
    template["spec"]["containers"][0]["env"].append({"name": KEEPER_VARIABLE, "value": url})
    template["spec"]["enableServiceLinks"] = True
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 1}}
    return _deployment(farm, worker_name(pool), farm.pools[pool].workers, labels, template, rolling)


def service(farm: FarmFile, name: str, labels: dict[str, str], port: int) -> dict[str, Any]:
    spec = {"selector": labels, "ports": [{"name": "http", "protocol": "TCP", "port": port, "targetPort": port}]}
    return made("Service", name, farm, spec=spec)


def budget(farm: FarmFile, pool: int) -> dict[str, Any]:
    """Nodes are emptied one worker at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector(farm, WORKER, pool)}}
    return made("PodDisruptionBudget", worker_name(pool), farm, api="policy/v1", spec=spec)


def _farm_yaml(farm: FarmFile) -> str:
    return yaml.safe_dump(farm.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _probed(how: dict[str, Any]) -> dict[str, Any]:
    return {
        "startupProbe": {**how, "periodSeconds": _STEP_S, "failureThreshold": _START_S // _STEP_S},
        "readinessProbe": {**how, "periodSeconds": _STEP_S, "timeoutSeconds": _STEP_S},
        "livenessProbe": {**how, "periodSeconds": 4 * _STEP_S, "timeoutSeconds": 2 * _STEP_S},
    }


def _template(
    farm: FarmFile, role: str, labels: dict[str, str], port: int, container: dict[str, Any], mounts: list[dict[str, Any]]
) -> dict[str, Any]:
    target = target_of(farm)
    whole = {
        "name": role,
        "image": target.image,
        "imagePullPolicy": "IfNotPresent",
        **container,
        "env": [token_variable(TOKEN_VARIABLE), {"name": _BOXES_VARIABLE, "value": target.boxes}],
        "ports": [{"name": "http", "protocol": "TCP", "containerPort": port}],
        "resources": _RESOURCES[role],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],
    }
    spec = {
        "serviceAccountName": role,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [whole],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": _TMP_SIZE}}],
    }
    return {"metadata": {"labels": {"app.kubernetes.io/name": "envfarm", **labels}}, "spec": spec}


def _deployment(
    farm: FarmFile, name: str, replicas: int, labels: dict[str, str], template: dict[str, Any], strategy: dict[str, Any]
) -> dict[str, Any]:
    spec = {"replicas": replicas, "strategy": strategy, "selector": {"matchLabels": labels}, "template": template}
    return made("Deployment", name, farm, api="apps/v1", labels=labels, spec=spec)
