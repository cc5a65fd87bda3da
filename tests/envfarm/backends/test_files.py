"""Files below one open directory: whatever links an agent makes there, nothing outside is read or written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envfarm.backends.files import Tree
from envfarm.backends.tarball import pack, unpack

SECRET = b"outside"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """`/task` of a box, with a neighbour that must stay out of reach."""
    inside = tmp_path / "task"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    tree = Tree(os.open(inside, os.O_RDONLY | os.O_DIRECTORY), "/task")
    yield tree
    tree.close()


names = st.sampled_from(["a", "b", "c", "..", ".", "secret", "task"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
targets = st.one_of(paths, paths.map("/task/".__add__), paths.map("/".__add__), st.just("/"), st.just(".."))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(links=st.dictionaries(st.sampled_from(["a", "b", "c"]), targets), path=targets, folder=st.booleans())
def test_no_link_leads_out(tmp_path: Path, tree: Tree, links: dict[str, str], path: str, folder: bool) -> None:
    inside = tmp_path / "task"
    for old in sorted(inside.rglob("*"), key=lambda p: len(p.parts), reverse=True):
        old.rmdir() if old.is_dir() and not old.is_symlink() else old.unlink()
    if folder:
        (inside / "a").mkdir()
    for name, target in links.items():
        place = inside / ("a/" + name if folder else name)
        place.symlink_to(target)
    for attempt in (lambda: tree.read(path, 100), lambda: tree.archive(path, 100), lambda: tree.list(path, 100)):
        try:
            found = attempt()
        except (OSError, ValueError):
            continue
        assert SECRET not in (found if isinstance(found, bytes) else [])
        assert not isinstance(found, dict) or SECRET not in found.values()
    with suppress(OSError):
        tree.write(path, b"new", 0o644)
    assert (tmp_path / "secret").read_bytes() == SECRET
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret", "task"]


def test_a_directory_swapped_for_a_link_is_not_followed(tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "task" / "d").symlink_to(tmp_path)
    for call in (lambda: tree.read("d/secret", 100), lambda: tree.write("d/x", b"", 0o644), lambda: tree.list("d", 10)):
        with pytest.raises(PermissionError):
            call()
    assert not (tmp_path / "x").exists()


def test_write_replaces_and_makes_directories_whatever_the_umask(tmp_path: Path, tree: Tree) -> None:
    other = tmp_path / "task" / "other"
    other.write_bytes(b"kept")
    os.link(other, tmp_path / "task" / "linked")
    before = os.umask(0o077)
    try:
        tree.write("linked", b"new", 0o640)
        tree.write("/task/x/y/z", b"deep", 0o755)
    finally:
        os.umask(before)
    assert other.read_bytes() == b"kept" and tree.read("linked", 10) == b"new"
    assert [(e.path, oct(e.mode)) for e in tree.list("/task", 10)] == [
        ("linked", "0o640"),
        ("other", "0o644"),
        ("x", "0o755"),
        ("x/y", "0o755"),
        ("x/y/z", "0o755"),
    ]


def test_reading_a_fifo_or_too_much_does_not_hang(tmp_path: Path, tree: Tree) -> None:
    os.mkfifo(tmp_path / "task" / "pipe")
    (tmp_path / "task" / "big").write_bytes(b"x" * 11)
    with pytest.raises(PermissionError):
        tree.read("pipe", 10)
    with pytest.raises(ValueError, match="larger than 10"):
        tree.read("big", 10)
    assert len(tree.read("big", 11)) == 11


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(st.text("ab é/", min_size=1, max_size=8).filter(lambda n: n.strip("/")), st.binary(max_size=50), max_size=5)
)
def test_a_packed_tree_unpacks_to_the_same(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> None:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    a, b = Tree(os.open(one, os.O_RDONLY), "/task"), Tree(os.open(two, os.O_RDONLY), "/task")
    for name, data in contents.items():
        try:
            a.write("/task/" + name, data, 0o600)
        except (NotADirectoryError, IsADirectoryError):
            continue
    os.symlink("nowhere", one / "link")
    packed = pack(a.fd, 10_000)
    unpack(b.fd, packed)
    assert b.list("/task", 100) == a.list("/task", 100)
    assert pack(b.fd, 10_000) == packed
    for tree in (a, b):
        tree.close()
