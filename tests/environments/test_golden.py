"""Golden episodes come out as they were recorded (see `tests.golden`)."""

from __future__ import annotations

import json

import pytest

from envfarm.registry import default_registry
from tests.golden import file_of, played


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.box] if n.startswith("coding/") else []) for n in default_registry().ids()]
)
def test_golden_episodes_are_what_they_were(name: str) -> None:
    now = json.loads(json.dumps(played(name)))
    assert now == json.loads(file_of(name).read_text()), "if this is meant, run `python -m tests.update_golden`, read the diff"
