"""Frames: any cut of any stream of messages gives the same messages; a broken peer is told so."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from envfarm.worker.websocket import BINARY, CLOSE, PING, TEXT, FrameParser, WebSocketError, accept_key, frame

edges_of_the_length_field = st.sampled_from([125, 126, 127, 65_535, 65_536, 70_000])
payloads = st.binary(max_size=60) | edges_of_the_length_field.map(lambda n: bytes(range(256)) * (n // 256) + b"x" * (n % 256))
messages = st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), payloads), max_size=5)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(messages, st.lists(st.integers(min_value=0), max_size=6), st.booleans())
def test_any_cut_gives_the_same_messages(sent: list[tuple[int, bytes]], places: list[int], masked: bool) -> None:
    stream = b"".join(frame(payload, opcode, masked=masked) for opcode, payload in sent)
    parser = FrameParser(masked=masked, max_bytes=1 << 20)
    assert [message for piece in cut(stream, places) for message in parser.feed(piece)] == sent


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0), max_size=3), st.lists(st.integers(min_value=0), max_size=3))
def test_what_another_library_masks_and_fragments_is_read(payload: bytes, fragments: list[int], places: list[int]) -> None:
    pieces = cut(payload, fragments)
    frames = [
        Frame(Opcode.TEXT if i == 0 else Opcode.CONT, piece, fin=i == len(pieces) - 1).serialize(mask=True)
        for i, piece in enumerate(pieces)
    ]
    ping = Frame(Opcode.PING, b"hello").serialize(mask=True)
    stream = frames[0] + ping + b"".join(frames[1:])
    parser = FrameParser(masked=True, max_bytes=1 << 20)
    got = [message for piece in cut(stream, places) for message in parser.feed(piece)]
    assert sorted(got) == sorted([(TEXT, payload), (PING, b"hello")])


@pytest.mark.parametrize(
    ("data", "masked", "code"),
    [
        (frame(b"x", masked=False), True, 1002),
        (frame(b"x", masked=True), False, 1002),
        (b"\xf2\x80\0\0\0\0", True, 1002),
        (frame(b"x" * 2000, masked=True), True, 1009),
        (struct.pack("!BB", 0x80, 0x80) + b"\0\0\0\0", True, 1002),
        (struct.pack("!BB", 0x09, 0x80) + b"\0\0\0\0", True, 1002),
        (frame(b"x" * 126, CLOSE, masked=True), True, 1002),
    ],
    ids=[
        "unmasked client",
        "masked server",
        "reserved bits",
        "too large",
        "nothing to continue",
        "fragmented ping",
        "long close",
    ],
)
def test_a_broken_peer(data: bytes, masked: bool, code: int) -> None:
    with pytest.raises(WebSocketError) as error:
        list(FrameParser(masked=masked, max_bytes=1000).feed(data))
    assert error.value.code == code


def test_fragments_together_may_not_be_larger_than_one_message() -> None:
    parser = FrameParser(masked=False, max_bytes=1000)
    piece = bytes([0x02, 126]) + struct.pack("!H", 600) + b"x" * 600
    assert list(parser.feed(piece)) == []
    with pytest.raises(WebSocketError, match="1000 bytes"):
        list(parser.feed(bytes([0x00]) + piece[1:]))


def test_the_handshake_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
