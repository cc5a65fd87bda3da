"""The Pod Security Standard "restricted" (kubernetes.io, Pod Security Standards), check by check."""

from __future__ import annotations

from typing import Any

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(spec: dict[str, Any]) -> list[str]:
    """What the spec of a pod asks for beyond the standard. User and seccomp profile are expected to be set for the whole pod."""
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace") if key in spec]
    found += [f"volume {one['name']}" for one in spec["volumes"] if not one.keys() - {"name"} <= _VOLUMES]
    security = spec["securityContext"]
    if not security.get("runAsNonRoot") or security.get("runAsUser", 0) == 0:
        found.append("root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("seccomp profile")
    for one in (*spec.get("initContainers", ()), *spec["containers"]):
        context = one["securityContext"]
        if context.get("allowPrivilegeEscalation") is not False:
            found.append(f"{one['name']}: privilege escalation")
        if context.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{one['name']}: capabilities")
        found += [f"{one['name']}: {key}" for key in ("privileged", "procMount", "runAsUser", "seccompProfile") if key in context]
        found += [f"{one['name']}: hostPort" for port in one.get("ports", ()) if "hostPort" in port]
    return found
