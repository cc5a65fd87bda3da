"""What a pod's status means for a box: whether it is up, why it cannot come up, why it is gone.

Reasons are those of the API (`pod.status.reason`, `containerStatuses[].state`) and of the kubelet's and scheduler's messages.
"""

from __future__ import annotations

import re
from typing import Any

from envfarm.backends.kubernetes_manifest import CONTAINER
from envfarm.backends.remote_streams import Death

Pod = dict[str, Any]
_NO_IMAGE = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ErrImageInspect",
    "RegistryUnavailable",
)
_KILLED, _TERMINATED = 137, 143
_OWN_STORAGE = re.compile(
    r"exceeded its local ephemeral storage limit|Pod ephemeral local storage usage exceeds|Usage of EmptyDir"
)
"""What the kubelet says where a pod, not the node, is over a limit."""


def running(pod: Pod) -> bool:
    return "running" in _state(pod)


def over(pod: Pod) -> bool:
    """Whether the box has ended, as far as the API knows."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded") or "terminated" in _state(pod)


def ended(pod: Pod) -> bool:
    """Whether, as its node says, a deleted pod has no process: its container ran and is not there any more, or there is no image
    to run. "Ended" is also said of one that never ran, even while it is about to: that is not taken for an end."""
    for status in pod["status"].get("containerStatuses", ()):
        if status["name"] == CONTAINER:
            ran = "containerID" in status["state"].get("terminated", {}) or "terminated" in status.get("lastState", {})
            return (ran and "running" not in status["state"]) or no_image(pod) is not None
    return False


def settled(pod: Pod | None) -> bool:
    """Whether waiting for it to come up is over."""
    return pod is None or running(pod) or over(pod) or no_image(pod) is not None


def no_image(pod: Pod) -> str | None:
    """What the node said, where it cannot get the image."""
    for status in (*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())):
        waiting = status.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in _NO_IMAGE:
            return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")
    return None


def unschedulable(pod: Pod) -> str | None:
    """What the scheduler said, where no node has room."""
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return condition.get("message", "no node has room")
    return None


def progress(pod: Pod | None) -> str:
    """Where one that does not come up is stuck."""
    if pod is None:
        return "the API server has not told of it"
    waits = [
        f"{status['name']}: {(status.get('state', {}).get('waiting') or {}).get('reason')}"
        for status in (*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ()))
        if "waiting" in status.get("state", {})
    ]
    return f"phase {pod['status'].get('phase')}" + (f", {', '.join(waits)}" if waits else "")


def death(pod: Pod | None, *, answers: bool) -> Death:
    """Of a live process 1 nothing closes the streams but its own end, a kill from outside, or a lost connection. The kernel
    lets no process of the agent's kill it; one that writes into its memory makes it end by another signal."""
    if pod is None:
        return Death("its pod was removed" if answers else "the API server does not answer")
    status, node = pod["status"], pod["spec"].get("nodeName", "")
    reason, message = status.get("reason", ""), status.get("message", "")
    ended = _state(pod).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return Death("out of memory", by_agent=True, limit="memory")
    if reason == "Evicted":
        own = bool(_OWN_STORAGE.search(message))
        return Death(f"node {node} evicted it: {message}", by_agent=own, limit="disk" if own else None)
    if reason == "DeadlineExceeded":
        return Death("its deadline passed")
    if reason in ("NodeLost", "NodeAffinity", "Shutdown", "Terminated", "NodeShutdown"):
        return Death(f"node {node} was lost ({reason}): {message}".rstrip(": "))
    if "deletionTimestamp" in pod["metadata"]:
        return Death("its pod was removed")
    if ended:
        code = ended.get("exitCode", 0)
        if code in (_KILLED, _TERMINATED) or ended.get("reason") in ("ContainerStatusUnknown", "StartError"):
            return Death(f"its container was ended from outside (exit code {code}) {ended.get('message', '')}".rstrip())
        return Death(f"its first process was made to end (exit code {code})", by_agent=True, exit_code=code)
    for first in status.get("initContainerStatuses", ()):
        failed = first.get("state", {}).get("terminated") or {}
        if failed.get("exitCode"):
            said = f"{failed.get('reason', '')} {failed.get('message', '')}".strip()
            return Death(f"its first container {first['name']!r} failed (exit code {failed['exitCode']}): {said}")
    if reason or status.get("phase") == "Failed":
        return Death(f"its pod failed: {reason} {message}".strip())
    return Death("the connection to its pod was lost" + ("" if answers else ": the API server does not answer"))


def _state(pod: Pod) -> dict[str, Any]:
    for status in pod.get("status", {}).get("containerStatuses", ()):
        if status["name"] == CONTAINER:
            return status.get("state", {})
    return {}
