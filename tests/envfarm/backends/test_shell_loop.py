"""Frames and dumps of the shell loop, without a box."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.backends import shell_loop
from envfarm.backends.shell_loop import Answer, ShellEnded, SupervisorUp


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_frame_announces_as_many_lines_as_follow(command: str) -> None:
    head, _, body = shell_loop.encode("0123", command).partition(b"\n")
    nonce, lines, stdin = head.split(b" ")
    assert (nonce, stdin) == (b"0123", b"/dev/null")
    assert body == command.encode() + b"\n"
    assert int(lines) == body.count(b"\n")


def test_a_command_with_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        shell_loop.encode("0", "echo \0")


@given(st.binary())
def test_no_bytes_of_an_agent_break_the_decoder(frame: bytes) -> None:
    answer = shell_loop.decode(frame)
    assert answer is None or isinstance(answer, SupervisorUp) or 0 <= answer.exit_code <= 999


def test_what_the_loop_says_is_understood() -> None:
    assert shell_loop.decode(b"ab12 7 /a dir/with\nlines") == Answer(b"ab12", 7, b"/a dir/with\nlines")
    assert shell_loop.decode(b" 0 /task") == Answer(b"", 0, b"/task")
    assert shell_loop.decode(b"X 137") == ShellEnded(137)
    assert shell_loop.decode(b"U 0") == SupervisorUp()
    assert shell_loop.decode(b"X x") is None


def test_the_supervisor_is_one_line_so_that_line_numbers_are_the_agents() -> None:
    assert shell_loop.SUPERVISOR.count("\n") == 0


def test_a_dump_gives_back_variables_functions_and_directory_but_not_what_is_read_only() -> None:
    made = 'a="it\'s\n2"; export B=3; c=(x \'y z\'); declare -A d=([k]=v); f() { echo "f $1"; }; '
    made += "alias q='echo q'; readonly r=1; set -f; umask 027; cd /usr; "
    dump = subprocess.run(["bash", "--norc", "-c", made + shell_loop.DUMP], capture_output=True, check=True).stdout
    state = shell_loop.restorable(dump)
    asked = 'echo "$a|$B|${c[1]}|${d[k]}|$(f 1)|$(umask)|$PWD|$-|${r-unset}"; sh -c \'echo "$B"\''
    done = subprocess.run(["bash", "--norc", "-c", state.decode() + "\n" + asked], capture_output=True, text=True, cwd="/")
    text, child = done.stdout.rsplit("\n", 2)[:2]
    flags = text.split("|")[7]
    assert text.split("|")[:7] == ["it's\n2", "3", "y z", "v", "f 1", "0027", "/usr"]
    assert "f" in flags and text.endswith("|unset") and child == "3"
    assert "readonly" not in done.stderr
