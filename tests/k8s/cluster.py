"""The live cluster of KUBECONFIG, by kubectl."""

from __future__ import annotations

import json
import subprocess

from tests.k8s.places import Object

UNKNOWN_TO_1_20 = {"PodDisruptionBudget"}
"""Kinds that the test bed's server does not know in the version that is rendered."""


def kubectl(*arguments: str, given: object = None) -> subprocess.CompletedProcess[str]:
    text = None if given is None else json.dumps(given)
    return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True)


def create(*found: Object, dry: bool) -> str:
    """Names of what the server took. Raises AssertionError with its words."""
    options = ["--dry-run=server"] if dry else []
    listed = {"apiVersion": "v1", "kind": "List", "items": list(found)}
    done = kubectl("create", *options, "--validate=true", "-o", "name", "-f", "-", given=listed)
    assert done.returncode == 0, done.stderr
    return done.stdout
