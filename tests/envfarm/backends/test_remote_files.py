"""What a box sends back is taken apart as hostile data: listings, tars, frames."""

from __future__ import annotations

import asyncio
import io
import socket
import tarfile
from collections.abc import Callable

import pytest

from envfarm.backends import remote_files, remote_side
from envfarm.backends.docker_stream import SocketPipe
from envfarm.backends.remote_files import RemoteFiles, place, regular_files
from envfarm.backends.remote_side import Answer, Refused, Side, SideLost, State, quote
from envfarm.backends.tarball import canonical
from envfarm.box import WRITABLE, Entry

MOUNTS = ("/task", "/tmp", "/app")


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("a/b", ("/task", "a/b")),
        ("/task", ("/task", "")),
        ("//task//a/./b/", ("/task", "a/b")),
        ("/tmp/x", ("/tmp", "x")),
        ("/app/x", ("/app", "x")),
        ("/task/../etc", ("/task", "../etc")),  # refused by the walk in the box, which knows what '..' leads to
    ],
)
def test_a_path_is_a_mount_and_the_rest(path: str, where: tuple[str, str]) -> None:
    assert place(path, MOUNTS) == where


@pytest.mark.parametrize("path", ["/", "/etc/passwd", "/taskforce", "/run/in/x", "/application"])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(PermissionError):
        place(path, MOUNTS)


def test_only_directories_that_the_image_does_not_need_may_be_writable() -> None:
    assert all(map(WRITABLE.fullmatch, ("/app", "/logs", "/tests", "/work-space2", "/home", "/a")))
    for path in ("/", "/usr", "/etc", "/lib64", "/task", "/tmp", "/root", "/app/sub", "app", "/App", "/a b", "/-a", "/a-"):
        assert not WRITABLE.fullmatch(path), path


def test_a_request_is_one_line_whatever_the_name() -> None:
    assert "\n" not in quote("it's\n2") and quote("it's\n2") == "'it'\\''s'\"$NL\"'2'"


def files(answers: dict[str, Answer | str]) -> tuple[RemoteFiles, list[str]]:
    asked: list[str] = []

    async def ask(text: str, data: bytes = b"", *, timeout_s: float) -> Answer:
        asked.append(text)
        answer = answers[text.split()[0]]
        if isinstance(answer, str):
            raise Refused(answer)
        return answer

    return RemoteFiles(ask), asked


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("missing", FileNotFoundError),
        ("isdir", IsADirectoryError),
        ("nodir", NotADirectoryError),
        ("leaves", PermissionError),
        ("special", PermissionError),
        ("loop", OSError),
        ("large", ValueError),
        ("what", PermissionError),
    ],
)
def test_refusals_become_the_errors_of_a_box(word: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        asyncio.run(files({"get": word})[0].read("a", 10))


def listing(*entries: tuple[str, int, str, str, str]) -> bytes:
    return b"".join(f"{kind}\0{size}\0{mode}\0{path}\0{target}\0".encode() for kind, size, mode, path, target in entries)


def test_a_listing_is_sorted_and_bounded() -> None:
    found = listing(("f", 3, "644", "b", ""), ("d", 40, "755", "a", ""), ("l", 9, "777", "c", "/etc"), ("p", 0, "600", "d", ""))
    box, _ = files({"tree": Answer([], found + b"f\0003\000644\0cut o")})
    assert asyncio.run(box.list("/task", 10)) == [
        Entry(path="a", kind="directory", size=0, mode=0o755),
        Entry(path="b", kind="file", size=3, mode=0o644),
        Entry(path="c", kind="link", size=0, mode=0o777, target="/etc"),
        Entry(path="d", kind="other", size=0, mode=0o600),
    ]
    with pytest.raises(ValueError, match="more than 3"):
        asyncio.run(box.list("/task", 3))


def tar(*entries: tuple[str, bytes, bytes], link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), link
            info.uid = info.gid = 0
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_artifacts_are_what_was_listed_and_nothing_more() -> None:
    packed = tar(("out/a", tarfile.REGTYPE, b"1"), ("out/extra", tarfile.REGTYPE, b"2"), ("../../etc/x", tarfile.REGTYPE, b"3"))
    box, _ = files({"plain": Answer([], listing(("f", 1, "644", "a", ""))), "stream": Answer([], packed)})
    assert asyncio.run(box.archive("/task/out", 100)) == {"out/a": b"1"}


@pytest.mark.parametrize("path", ["/etc", "/tmp/x", "/task/../etc", "/task/a/../b"])
def test_artifacts_lie_in_the_workdir(path: str) -> None:
    box, asked = files({})
    with pytest.raises(PermissionError):
        asyncio.run(box.archive(path, 100))
    assert asked == []


def test_too_large_artifacts_are_not_fetched() -> None:
    box, asked = files({"plain": Answer([], listing(("f", 70, "644", "a", ""), ("f", 70, "644", "b", "")))})
    with pytest.raises(ValueError, match="larger than allowed: /task/out/b"):
        asyncio.run(box.archive("/task/out", 100))
    assert len(asked) == 1


def test_what_is_no_tar_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        regular_files(b"x" * 2048)
    with pytest.raises(ValueError, match="cannot be read"):
        canonical(b"x" * 2048, 10)


def test_a_snapshot_is_written_anew() -> None:
    packed = tar(("./d", tarfile.DIRTYPE, b""), ("./d/f", tarfile.REGTYPE, b"abc"), ("p", tarfile.FIFOTYPE, b""))
    with tarfile.open(fileobj=io.BytesIO(canonical(packed, 3))) as again:
        assert [(m.name, m.type) for m in again] == [("d", tarfile.DIRTYPE), ("d/f", tarfile.REGTYPE)]
    with pytest.raises(ValueError, match="at most 2 bytes"):
        canonical(packed, 2)
    with pytest.raises(ValueError, match="leads out"):
        canonical(tar(("a/../../x", tarfile.REGTYPE, b"")), 10)
    hard = canonical(tar(("h", tarfile.LNKTYPE, b""), link="gone"), 10)
    assert regular_files(hard) == {"h": b""}


# --- the second shell's answers, over a real socket -------------------------------------------------------------------


def talk(reply: Callable[[str], bytes], text: str = "state", timeout_s: float = 30.0) -> Answer:
    """Ask once; `reply` makes the bytes that come back for the request's nonce."""

    async def main() -> Answer:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        side = Side(SocketPipe(ours))
        try:
            asking = asyncio.ensure_future(side.ask(text, timeout_s=timeout_s))
            request = await loop.sock_recv(theirs, 4096)
            answer = reply(request.decode().partition("r=")[2].partition(";")[0])
            for part in (answer[: len(answer) // 2], answer[len(answer) // 2 :]):
                await loop.sock_sendall(theirs, b"\1\0\0\0" + len(part).to_bytes(4) + part)
            if timeout_s < 1:
                return await asking
            theirs.close()
            return await asking
        finally:
            side.close()
            theirs.close()

    return asyncio.run(main())


def test_an_answer_is_found_behind_whatever_was_forged() -> None:
    forged = b"\0" + b"0" * 16 + b" ok 3\nabc" + b"\0" * 100 + b"x" * 5000
    got = talk(lambda nonce: forged + f"\0{nonce} ok 0 1 2 3 4 5 6 17\n".encode())
    assert State.of(got.words) == State(1, 2, 3, 4e-6, 5, 6 * 4096, (17,))
    assert talk(lambda nonce: f"\0{nonce} ok 3\nabcdef".encode()).payload == b"abc"
    assert talk(lambda nonce: f"\0{nonce} ok -1\na\0b\0{nonce}.".encode()).payload == b"a\0b"
    with pytest.raises(Refused, match="missing"):
        talk(lambda nonce: f"\0{nonce} missing 0\n".encode())


@pytest.mark.parametrize("answer", ["\0{} ok\n", "\0{} ok many\n", "nothing of the kind", "\0{} ok 10\nshort"])
def test_nonsense_and_an_early_end_are_a_lost_shell(answer: str) -> None:
    with pytest.raises(SideLost):
        talk(lambda nonce: answer.format(nonce).encode())


def test_a_stopped_shell_is_a_lost_shell() -> None:
    with pytest.raises(SideLost):
        talk(lambda nonce: b"", timeout_s=0.01)


def test_the_script_has_no_line_that_names_us() -> None:
    assert "envfarm" not in remote_side.SCRIPT + remote_files.SCRIPT + remote_side.SERVE
