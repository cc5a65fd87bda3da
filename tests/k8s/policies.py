"""NetworkPolicies as a graph: who may open a connection to whom, by the rules of the API (`networking.k8s.io/v1`).

A connection is allowed where both ends allow it; an end that no policy selects for a direction allows everything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Edge = tuple[str, str, int]


@dataclass(frozen=True)
class End:
    """A pod, or (without a namespace) an address outside of the cluster."""

    name: str
    address: str
    namespace: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


def graph(objects: Iterable[Object], ends: list[End], ports: Iterable[int]) -> set[Edge]:
    """Source, target, port: what both ends allow."""
    egress, ingress = sides(objects, ends, ports)
    return egress & ingress


def sides(objects: Iterable[Object], ends: list[End], ports: Iterable[int]) -> tuple[set[Edge], set[Edge]]:
    """What the sources allow, and what the targets do. Between addresses outside of the cluster nothing is asked."""
    objects = list(objects)
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    spaces = {one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in objects if one["kind"] == "Namespace"}
    pairs = [(a, b, port) for a in ends for b in ends for port in ports if a is not b and (a.namespace or b.namespace)]
    egress = {(a.name, b.name, port) for a, b, port in pairs if _allows(policies, spaces, a, b, "Egress", port)}
    ingress = {(a.name, b.name, port) for a, b, port in pairs if _allows(policies, spaces, b, a, "Ingress", port)}
    return egress, ingress


def _allows(policies: list[Object], spaces: dict[str, Any], here: End, other: End, direction: str, port: int) -> bool:
    selecting = [
        one["spec"]
        for one in policies
        if one["metadata"]["namespace"] == here.namespace
        and direction in _directions(one["spec"])
        and _matches(one["spec"]["podSelector"], here.labels)
    ]
    if not selecting:
        return True
    side = "to" if direction == "Egress" else "from"
    rules = [rule for spec in selecting for rule in spec.get(direction.lower(), ())]
    return any(_port(rule.get("ports"), port) and _peer(rule.get(side), spaces, here, other) for rule in rules)


def _directions(spec: Object) -> list[str]:
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]


def _port(ports: list[Object] | None, port: int) -> bool:
    if not ports:
        return True
    assert all(one.keys() <= {"protocol", "port"} for one in ports)
    return any(one.get("port", port) == port for one in ports)


def _peer(peers: list[Object] | None, spaces: dict[str, Any], here: End, other: End) -> bool:
    return not peers or any(_is(peer, spaces, here, other) for peer in peers)


def _is(peer: Object, spaces: dict[str, Any], here: End, other: End) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(net) for net in block.get("except", ())
        )
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        labels = {**spaces.get(other.namespace, {}), "kubernetes.io/metadata.name": other.namespace}
        near = _matches(peer["namespaceSelector"], labels)
    else:
        near = other.namespace == here.namespace
    return near and _matches(peer.get("podSelector", {}), other.labels)


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "nothing else is written here"
    return selector.get("matchLabels", {}).items() <= labels.items()
