"""Who may speak to whom. What no policy names is forbidden, in both namespaces.

    rollout ──> keeper <──> worker ──> API server <── keeper
    rollout ──> worker
    boxes: nothing in, nothing out

Policies hold where the cluster's network plugin enforces them. A policy cannot name the API server, which is no pod: so its ports
are open towards every address but the link's own, where clouds hand out the node's credentials. Narrow that to your API server's.
"""

from __future__ import annotations

from typing import Any

from envfarm.farm import KEEPER_PORT, WORKER_PORT
from envfarm.farm.file import FarmFile
from envfarm.farm.manifests.names import KEEPER, ROLLOUT, WORKER, made, selector

API_SERVER_PORTS = (443, 6443, 8443)
"""Of the service, and of the API server behind it: a plugin may look at either."""

_API_SERVER = {
    "to": [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
    ],
    "ports": [{"protocol": "TCP", "port": port} for port in API_SERVER_PORTS],
}
_DNS = {
    "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
    "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
}


def policies(farm: FarmFile) -> list[dict[str, Any]]:
    def peers(port: int, *roles: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return [{"podSelector": {"matchLabels": selector(farm, role)}} for role in roles], [{"protocol": "TCP", "port": port}]

    def come(port: int, *roles: str) -> dict[str, Any]:
        who, ports = peers(port, *roles)
        return {"from": who, "ports": ports}

    def go(port: int, *roles: str) -> dict[str, Any]:
        who, ports = peers(port, *roles)
        return {"to": who, "ports": ports}

    to_keeper, to_worker = go(KEEPER_PORT, KEEPER), go(WORKER_PORT, WORKER)
    return [
        _closed(farm, boxes=True),
        _closed(farm, boxes=False),
        _open(farm, KEEPER, [come(KEEPER_PORT, WORKER, ROLLOUT)], [to_worker, _API_SERVER]),
        _open(farm, WORKER, [come(WORKER_PORT, ROLLOUT, KEEPER)], [to_keeper, _API_SERVER]),
        _open(farm, ROLLOUT, [], [to_keeper, to_worker, _DNS]),
    ]


def _closed(farm: FarmFile, *, boxes: bool) -> dict[str, Any]:
    """Every pod of a namespace, for what other policies do not open."""
    spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return made("NetworkPolicy", "deny-all", farm, api="networking.k8s.io/v1", boxes=boxes, spec=spec)


def _open(farm: FarmFile, role: str, ingress: list[dict[str, Any]], egress: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = {"podSelector": {"matchLabels": selector(farm, role)}, "policyTypes": ["Ingress", "Egress"]}
    spec |= {"ingress": ingress} if ingress else {}
    return made("NetworkPolicy", role, farm, api="networking.k8s.io/v1", spec={**spec, "egress": egress})
