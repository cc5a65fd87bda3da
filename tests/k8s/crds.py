"""Custom resource definitions of others, small enough to lie here: one version, and equal parts once.

    python -m tests.k8s.crds ray.io_rayclusters.yaml      makes crds/rayclusters.json of what KubeRay publishes

KubeRay v1.7.0, Apache-2.0. What is left out are rules in CEL and empty defaults, which the oldest server that we test on refuses.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "crds"
_LISTS = {"x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-map-type"}
_LEFT_OUT = {"x-kubernetes-validations", "selectableFields", "description", *_LISTS}
_WORTH_BYTES = 120


def definition(name: str) -> dict[str, Any]:
    """As an API server takes it."""
    return _expanded(json.loads((FOLDER / f"{name}.json").read_text()))


def strict_schema(crd: dict[str, Any]) -> dict[str, Any]:
    """Of its one version, as JSON Schema: keys that it does not name are refused."""
    (version,) = crd["spec"]["versions"]
    return _closed(version["schema"]["openAPIV3Schema"])


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: _closed(value) for key, value in node.items()}
    if node.get("type") == "object" and "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def _expanded(crd: dict[str, Any]) -> dict[str, Any]:
    parts = crd.pop("parts")

    def whole(node: Any) -> Any:
        if isinstance(node, dict):
            return whole(parts[node["part"]]) if node.keys() == {"part"} else {k: whole(v) for k, v in node.items()}
        return [whole(one) for one in node] if isinstance(node, list) else node

    return whole(crd)


def _reworked(crd: dict[str, Any], version: str) -> dict[str, Any]:
    crd["spec"]["versions"] = [one for one in crd["spec"]["versions"] if one["name"] == version]
    crd["metadata"] = {key: crd["metadata"][key] for key in ("name",)}
    crd.pop("status", None)
    crd = _without(crd)
    counts = Counter(_text(node) for node in _nodes(crd["spec"]["versions"][0]["schema"]))
    numbers = {text: str(n) for n, text in enumerate(t for t, count in counts.items() if count > 1 and len(t) > _WORTH_BYTES)}

    def short(node: Any, inside: bool = True) -> Any:
        if isinstance(node, dict):
            if inside and _text(node) in numbers:
                return {"part": numbers[_text(node)]}
            return {key: short(value) for key, value in node.items()}
        return [short(one) for one in node] if isinstance(node, list) else node

    parts = {number: short(json.loads(text), inside=False) for text, number in numbers.items()}
    made = short(crd)
    used = _used(made, parts)
    return {**made, "parts": {number: part for number, part in parts.items() if number in used}}


def _used(node: Any, parts: dict[str, Any]) -> set[str]:
    if isinstance(node, dict):
        if node.keys() == {"part"}:
            return {node["part"]} | _used(parts[node["part"]], parts)
        node = list(node.values())
    return set().union(*(_used(one, parts) for one in node)) if isinstance(node, list) else set()


def _without(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without(value)
            for key, value in node.items()
            if not (key in _LEFT_OUT and not isinstance(value, dict))
            and not (key == "default" and not value and value is not False)
        }
    return [_without(one) for one in node] if isinstance(node, list) else node


def _nodes(node: Any) -> Any:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    for one in node if isinstance(node, list) else ():
        yield from _nodes(one)


def _text(node: Any) -> str:
    return json.dumps(node, sort_keys=True)


if __name__ == "__main__":
    published = yaml.load(Path(sys.argv[1]).read_text("utf-8"), Loader=yaml.CSafeLoader)
    text = json.dumps(_reworked(published, "v1"), separators=(",", ":"), sort_keys=True)
    (FOLDER / f"{published['spec']['names']['plural']}.json").write_text(text + "\n")
