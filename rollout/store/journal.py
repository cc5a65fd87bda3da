"""An append-only file of framed records: what is finished is durable at once, whatever is killed.

A frame is 16 bytes of header and a payload: magic, payload length, CRC-32 of the payload, CRC-32 of these three.
One `write()` per frame: after `kill -9` a file ends in a whole frame or in a torn one, which is cut off by the next
writer. A frame whose header or payload does not match its CRC was damaged later; the frames around it stay readable.
`sync` (on seal) is what makes records survive a power cut.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envfarm.errors import StoreError

MAGIC = b"EFJ1"
_HEADER = struct.Struct("<4sIII")


@dataclass(frozen=True)
class Frame:
    """One record as found: `damage` says what is wrong with it, and is empty where nothing is."""

    offset: int
    payload: bytes
    damage: str = ""
    torn: bool = False  # the write that never finished: nothing was lost


def frame(payload: bytes) -> bytes:
    body = struct.pack("<4sII", MAGIC, len(payload), zlib.crc32(payload))
    return body + struct.pack("<I", zlib.crc32(body)) + payload


def read_frames(data: bytes) -> Iterator[Frame]:
    """Every frame in order, damaged ones included; reading goes on at the next magic."""
    offset, size = 0, len(data)
    while offset < size:
        header = data[offset : offset + _HEADER.size]
        if len(header) < _HEADER.size and (MAGIC.startswith(header[:4]) or header.startswith(MAGIC)):
            yield Frame(offset, b"", "the last record was not written to its end", torn=True)
            return
        magic, length, crc, header_crc = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        if magic != MAGIC or zlib.crc32(header[:12]) != header_crc:
            following = data.find(MAGIC, offset + 1)
            end = following if following >= 0 else size
            yield Frame(offset, data[offset + _HEADER.size : end], "the header does not match its checksum")
            offset = end
            continue
        payload = data[offset + _HEADER.size : offset + _HEADER.size + length]
        if len(payload) < length:
            yield Frame(offset, b"", "the last record was not written to its end", torn=True)
            return
        good = zlib.crc32(payload) == crc
        yield Frame(offset, payload, "" if good else "the record does not match its checksum")
        offset += _HEADER.size + length


class Journal:
    """The file being written. Raises: StoreError where the disk refuses; what was there before stays whole."""

    def __init__(self, path: Path):
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        torn = next((f.offset for f in read_frames(data) if f.torn), None)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = len(data)
        if torn is not None:
            self._cut(torn)

    def append(self, payload: bytes) -> None:
        framed = frame(payload)
        try:
            written = os.write(self._descriptor, framed)
            while written < len(framed):  # a short write: the disk is full, or a signal came
                written += os.write(self._descriptor, framed[written:])
        except OSError as error:
            self._cut(self._size)
            raise StoreError(
                f"cannot write to {self.path}: {error.strerror}. Everything stored before is whole; free some space "
                "and start the same command again"
            ) from error
        self._size += len(framed)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self._size = size
