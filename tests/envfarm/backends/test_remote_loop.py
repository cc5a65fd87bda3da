"""A command's output is cut out of a stream by marks: however the stream is chopped, whatever the agent forges."""

from __future__ import annotations

import itertools
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.backends import remote_loop, shell_loop
from envfarm.backends.remote_loop import MARK_BYTES, Channel, Ended

SECRET, NONCE = "5ec7e7" * 4, "ab" * 8


def channel(keep: int = 1 << 20) -> Channel:
    made = Channel(keep, SECRET)
    made.expect(NONCE)
    return made


def mark(kind: str, rest: str = "") -> bytes:
    return f"\0{kind}{SECRET if kind == 'X' else NONCE}{rest}".encode() + (b"\n" if kind == "S" else b"\0")


PIECES = [b"a", b"\0", b"\0E", b"\0S" + NONCE.encode(), b"\n", mark("X")[:-2], b"0 /task", b"xyz" * 50]
PIECES.append(b"\0E" + NONCE.encode() + b" 1;")


@given(st.lists(st.sampled_from(PIECES)), st.lists(st.integers(0, 400)))
def test_any_output_in_any_pieces_comes_out_whole(output: list[bytes], cuts: list[int]) -> None:
    text = b"".join(output)
    whole = b"late output of the last command" + mark("S") + text + mark("E", " 7;/task/a b")
    got, places = channel(), sorted({min(c, len(whole)) for c in cuts} | {0, len(whole)})
    for start, end in itertools.pairwise(places):
        got.feed(whole[start:end])
    assert got.ended is not None
    if mark("E", " 1;")[:-1] not in text:  # that command the agent has ended itself
        assert got.take() == (text, False)
        assert got.ended == Ended(exit_code=7, cwd=b"/task/a b")


def test_what_comes_outside_of_a_command_is_dropped() -> None:
    got = channel()
    got.feed(b"before" + mark("S") + b"in" + mark("E", " 0;/") + b"after")
    assert got.take() == (b"in", False)
    got.expect("cd" * 8)
    got.feed(b"later" + mark("S") + b"of the old nonce" + mark("E", " 3;/"))
    assert got.ended is None and got.take() == (b"", False)


@given(st.lists(st.sampled_from(PIECES)), st.lists(st.integers(0, 400)))
def test_a_command_that_is_not_marked_begins_with_the_next_byte(output: list[bytes], cuts: list[int]) -> None:
    text = b"".join(output)
    got = channel()
    got.feed(mark("S") + b"the last one" + mark("E", " 0;/"))
    got.expect(other := "cd" * 8, marked=False)
    whole = text + f"\0E{other} 5;/task\0".encode()
    for start, end in itertools.pairwise(sorted({min(c, len(whole)) for c in cuts} | {0, len(whole)})):
        got.feed(whole[start:end])
    assert got.take() == (text, False)
    assert got.ended == Ended(exit_code=5, cwd=b"/task")


def test_who_has_the_key_says_what_is_left() -> None:
    got = channel()
    got.expect(NONCE, key="5e")
    state = b" 7 1 0 0 25000 0 0  12;/task\0"
    for name in ("", "5f"):
        got.feed(mark("S") + b"\0C" + f"{name}{NONCE}".encode() + state)
    assert got.ended is None
    got.feed(b"\0C5e" + NONCE.encode() + state)
    assert got.ended == Ended(cleared=True, exit_code=7, state=tuple(b"1 0 0 25000 0 0 12".split()), cwd=b"/task")
    got.expect("cd" * 8)
    got.feed(mark("S") + b"\0C5e" + b"cd" * 8 + state)
    assert got.ended is None, "nobody was asked to say it"


def test_only_the_secret_speaks_for_process_1() -> None:
    got = channel()
    got.feed(mark("S") + b"\0X 0\0" + b"\0X" + NONCE.encode() + b" 0\0")
    assert got.ended is None
    got.feed(mark("X", " 137"))
    assert got.ended == Ended(shell_too=True, exit_code=137)
    got.expect("ef" * 8)
    assert got.ended is not None and got.ended.shell_too, "until another shell is asked for"
    got.renewed()
    assert got.ended is None


def test_a_mark_that_never_ends_is_output() -> None:
    got = channel()
    got.feed(mark("S") + b"\0E" + NONCE.encode() + b" 0;/")
    for _ in range(3):
        got.feed(b"x" * MARK_BYTES)
    assert got.ended is None and got.seen > 2 * MARK_BYTES
    got.feed(mark("E", " 0;/task"))
    assert got.ended == Ended(exit_code=0, cwd=b"/task")


def test_more_than_is_kept_is_counted_and_dropped() -> None:
    got = channel(keep=10)
    got.feed(mark("S"))
    for _ in range(100):
        got.feed(b"0123456")
    got.feed(mark("E", " 0;/"))
    assert got.seen == 700 and got.take() == (b"0123456012", True)


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_the_loop_in_a_real_shell(shell: str) -> None:
    """Without any box: marks, state, a shell that ends, and another one."""
    first, then, again, last = "11" * 8, "22" * 8 + "s", "33" * 8, "44" * 8 + "s"
    given_ = remote_loop.handshake(SECRET, first) + shell_loop.encode(then, "x='a b'; echo out; echo err >&2; exit 5")
    given_ += b"junk\n" + remote_loop.handshake(SECRET, again) + shell_loop.encode(last, 'cat; echo "[$x]"; (exit 3)')
    command = [shell, "-c", 'eval "$__b"', shell, "\n"]
    environment = {**remote_loop.environment(), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, input=given_, capture_output=True, env=environment, cwd="/", timeout=60)
    out, err = Channel(1000, SECRET), Channel(1000, SECRET)
    seen = []
    for nonce in (then, last):
        for stream, data in ((out, done.stdout), (err, done.stderr)):
            stream.renewed()
            stream.expect(nonce)
            stream.feed(data if nonce == then else data.partition(b"\0E" + again.encode())[2])
        assert out.ended is not None
        seen.append((out.ended.shell_too, out.take()[0], err.take()[0]))
    assert seen[0] == (True, b"out\n", b"err\n")
    assert seen[1][1:] == (b"[]\n", b"")
    assert b"\0E" + last.encode() + b" 3;/\0" in done.stdout and done.stdout.count(b"\0S") == 2
