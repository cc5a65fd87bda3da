"""Which control groups are found, on either version; what is swept. Whether limits bite is the conformance suite's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from envfarm.backends.cgroups import GroupsV1, GroupsV2, _find_v1, _find_v2, find_groups
from envfarm.backends.processes import start_ticks
from envfarm.box import BoxSpec


def tree(root: Path, *directories: str) -> None:
    for directory in directories:
        (root / directory).mkdir(parents=True, exist_ok=True)


def test_version_1_makes_groups_below_its_own(tmp_path: Path) -> None:
    tree(tmp_path, "memory/mine", "pids", "cpu,cpuacct/mine")
    mounts = "".join(
        f"cgroup {tmp_path}/{place} cgroup rw,relatime,{controllers} 0 0\n"
        for place, controllers in (("memory", "memory"), ("pids", "pids"), ("cpu,cpuacct", "cpu,cpuacct"))
    )
    found = _find_v1(mounts, "3:cpu,cpuacct:/mine\n2:pids:/elsewhere\n1:memory:/mine\n")
    assert isinstance(found, GroupsV1)
    assert {c: str(p.relative_to(tmp_path)) for c, p in found.parents.items()} == {
        "memory": "memory/mine",
        "pids": "pids",
        "cpu": "cpu,cpuacct/mine",
        "cpuacct": "cpu,cpuacct/mine",
    }
    assert _find_v1(mounts.splitlines()[0], "1:memory:/\n") is None


@pytest.mark.parametrize(("handed_down_by", "parent"), [("user/mine", "user/mine"), ("user", "user"), ("", None)])
def test_version_2_needs_a_parent_that_hands_controllers_down(tmp_path: Path, handed_down_by: str, parent: str | None) -> None:
    tree(tmp_path, "user/mine")
    for place in ("", "user", "user/mine"):
        handed = "cpu io memory pids\n" if place == handed_down_by else "cpu\n"
        (tmp_path / place / "cgroup.subtree_control").write_text(handed)
    found = _find_v2(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", "0::/user/mine\n")
    if parent is None:
        assert found is None
    else:
        assert isinstance(found, GroupsV2)
        assert set(found.parents.values()) == {tmp_path / parent}


def test_version_2_reads_and_sets_in_its_own_words() -> None:
    groups = GroupsV2({})
    assert groups.read_cpu_s(b"usage_usec 1500000\nuser_usec 1\n") == 1.5
    settings = {(c, f): v for c, f, v in groups.settings(BoxSpec(memory_bytes=1 << 20, pids=10, cpu=0.5))}
    assert settings[("memory", "memory.max")] == "1048576"
    assert settings[("pids", "pids.max")] == "13"
    assert settings[("cpu", "cpu.max")] == "50000 100000"


def test_groups_of_owners_that_are_gone_are_swept_and_others_kept(tmp_path: Path) -> None:
    tmp_path = tmp_path / "session"
    mine = f"box-{os.getpid()}-{start_ticks(os.getpid())}-0"
    reused_pid = f"box-{os.getpid()}-1-0"
    tree(tmp_path, mine, reused_pid, "box-4194999-5-0", "system.slice")
    tree(tmp_path.parent, "another-session/box-4194999-5-1")
    assert GroupsV1({"memory": tmp_path}).sweep() == 3
    assert not (tmp_path.parent / "another-session/box-4194999-5-1").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine, "system.slice"])


def test_without_writable_groups_there_are_none() -> None:
    assert find_groups("proc /proc proc rw 0 0\n", "0::/\n") is None
