"""The documented mask: what it hides, and that it hides nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.masking import mask, side_by_side

PAIRS = [
    (
        "ls -la",
        "total 4\ndrwxr-xr-x 2 agent agent 40 Nov 24 23:28 d\n-rw-r--r-- 1 agent agent 41 Nov 24 23:28 f\n",
        "total 8\ndrwxr-xr-x 2 agent agent 4096 Jan  3  2024 d\n-rw-r--r-- 1 agent agent 41 Jan  3  2024 f\n",
    ),
    ("date", "Mon Nov 24 23:28:00 UTC 2025\n", "Tue Jan  2 03:04:05 UTC 2024\n"),
    ("date +%F", "2025-11-24\n", "2026-01-01\n"),
    ("date +%s.%N", "1764027000.123\n", "1764027001.5\n"),
    (
        "stat f",
        "Device: 0,33\tInode: 12  Links: 1\nModify: 2025-11-24 23:28:00.111 +0000\n",
        "Device: 8,1\tInode: 9  Links: 1\nModify: 2024-01-24 03:28:00.2 +0000\n",
    ),
    ("uname -a", "Linux box 6.18.44-a #1 SMP x86_64\n", "Linux box 5.10.0-22-amd64 #3 SMP Debian x86_64\n"),
    ("echo $$", "12\n", "1\n"),
    ("sleep 1 & jobs -l", "[1]+ 17 Running\n", "[1]+ 4000 Running\n"),
    ("find . -type f", "./b\n./a\n", "./a\n./b\n"),
    ("ls -i", "12 a\n 9 b\n", "1 a\n10 b\n"),
    (
        "ps",
        "  PID TTY          TIME CMD\n    1 ?        00:00:00 bash\n",
        "  PID TTY          TIME CMD\n   31 ?        00:00:02 bash\n",
    ),
    ("cat /proc/self/cgroup", "7:pids:/box-1316-77930-1\n0::/\n", "7:pids:/box-99-1-12\n0::/\n"),
    ("time ls", "real\t0m0.003s\nuser\t0m0.001s\n", "real\t0m1.403s\nuser\t0m0.101s\n"),
]


@pytest.mark.parametrize(("command", "one", "other"), PAIRS, ids=[p[0] for p in PAIRS])
def test_runs_that_differ_only_there_are_equal(command: str, one: str, other: str) -> None:
    def squeezed(text: str) -> tuple[str, int]:
        masked, count = mask(command, text)
        return (" ".join(masked.split()) if command == "ps" else masked), count

    (a, hidden_a), (b, hidden_b) = squeezed(one), squeezed(other)
    assert a == b
    assert 0 < hidden_a <= len(one) and hidden_b <= len(other)


@pytest.mark.parametrize(
    ("command", "one", "other"),
    [
        ("ls -la", "-rw-r--r-- 1 agent agent 41 Nov 24 23:28 f\n", "-rw-r--r-- 1 agent agent 42 Nov 24 23:28 f\n"),
        ("ls -la", "-rw-r--r-- 1 agent agent 41 Nov 24 23:28 f\n", "-rwxr--r-- 1 agent agent 41 Nov 24 23:28 f\n"),
        ("cat log", "2025-01-02 login\n", "2025-01-03 login\n"),
        ("find .", "./a\n./b\n", "./a\n./c\n"),
        ("wc -l f", "12 f\n", "13 f\n"),
        ("cat f", "b\na\n", "a\nb\n"),
    ],
)
def test_real_differences_stay(command: str, one: str, other: str) -> None:
    assert mask(command, one)[0] != mask(command, other)[0]


@given(st.text("abc xyz.,()\n", max_size=200))
def test_plain_words_are_left_alone(text: str) -> None:
    assert mask("cat notes", text) == (text, 0)


def test_the_real_tools_of_this_machine(tmp_path: Path) -> None:
    """What `ls -la` prints in two directories made at different times, apart from names."""
    for name, mtime in (("one", 10**9), ("two", 17 * 10**8)):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "f").write_text("same")
        subprocess.run(["touch", "-d", f"@{mtime}", str(tmp_path / name / "f"), str(tmp_path / name / "d")], check=True)
    seen = [subprocess.run(["ls", "-lR"], cwd=tmp_path / n, capture_output=True, text=True).stdout for n in ("one", "two")]
    assert seen[0] != seen[1]
    assert mask("ls -lR", seen[0])[0] == mask("ls -lR", seen[1])[0]


@pytest.mark.parametrize("command", ["rm a | rm b", "make & ls", "a |& b", "diff <(a) <(b)", '{"command": "rm a | rm b"}', "a&b"])
def test_processes_side_by_side_are_seen(command: str) -> None:
    assert side_by_side(command)


@pytest.mark.parametrize("command", ["rm a || rm b", "a && b", "ls 2>&1", "ls &>out", "cat >|f", "echo a; echo b"])
def test_what_runs_one_after_the_other_is_not(command: str) -> None:
    assert not side_by_side(command)


@given(st.text("ab\n", max_size=60).flatmap(lambda t: st.tuples(st.just(t), st.permutations(t))))
def test_without_its_order_output_still_has_the_same_characters(pair: tuple[str, list[str]]) -> None:
    one, other = pair[0], "".join(pair[1])
    assert mask("a | b", one, unordered=True) == mask("a | b", other, unordered=True)
    assert mask("a | b", one + "c", unordered=True)[0] != mask("a | b", other, unordered=True)[0]
    assert mask("a | b", one, unordered=True)[1] == len(one)
