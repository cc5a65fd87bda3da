"""The one secret of a farm: what rollouts send to keeper and workers, and workers to the keeper."""

from __future__ import annotations

from typing import Any

from envfarm.farm.file import FarmFile
from envfarm.farm.manifests.names import TOKEN_KEY, TOKEN_SECRET, made


def token_secret(farm: FarmFile, token: str) -> dict[str, Any]:
    """For whoever brings the farm up; no part of `render`."""
    return made("Secret", TOKEN_SECRET, farm, type="Opaque", stringData={TOKEN_KEY: token})


def token_variable(variable: str) -> dict[str, Any]:
    """The token in a container's environment."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": TOKEN_SECRET, "key": TOKEN_KEY}}}
