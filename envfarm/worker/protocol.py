"""What a session is asked and what it answers: one set of messages for every wire.

Our own client, and the pipe to a session in a process of its own, carry them as MessagePack (a message is an array
that begins with its tag); OpenEnv's JSON is translated to and from them in `envfarm.worker.openenv`.
Strict order within a session: one request, one reply, then the next request.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import msgspec

from envfarm import errors
from envfarm.bundle import Bundle
from envfarm.errors import EnvfarmError, EnvironmentFault
from envfarm.session import Turn
from envfarm.spec import Instance
from envfarm.tools import Action

MAX_MESSAGE_BYTES = 64 << 20
"""The largest message that either side accepts; the connection ends on a larger one."""

ENCODING_QUERY = "encoding=msgpack"
"""In the query of `/ws`: binary frames of a channel's number and a message of this module, instead of OpenEnv's JSON."""

CHANNEL_BYTES = 4
"""A channel is a session's place on a connection that many sessions share; numbers, little-endian, are never reused."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Reset(Message, frozen=True, tag="reset"):
    """A new episode; whatever ran on this connection before is closed. Answer: `Said`."""

    env_id: str
    instance: Instance


class Step(Message, frozen=True, tag="step"):
    """One action. Answer: `Said`."""

    action: Action
    role: str | None = None  # None: whoever's turn it is; else it is checked


class Finish(Message, frozen=True, tag="finish"):
    reason: str


class Oracle(Message, frozen=True, tag="oracle"):
    """Answer: `Words`, the expert's next action."""


class Random(Message, frozen=True, tag="random"):
    seed: int


class Fork(Message, frozen=True, tag="fork"):
    """Clone the live session with its box. Answer: `Words`, the id to attach to, once: `/ws?session_id=ID`, or `Attach`."""


class Release(Message, frozen=True, tag="release"):
    """Close the session and free its box; the connection stays for the next reset. Answer: `Words("")`."""


class Attach(Message, frozen=True, tag="attach"):
    """The first message of a channel that takes over a forked session. Answer: `Words("")`."""

    session_id: str


class Leave(Message, frozen=True, tag="leave"):
    """The channel's session is closed, whatever it is doing. No answer."""


class Bring(Message, frozen=True, tag="bring"):
    """An environment for this worker to serve (see `envfarm.worker.brought`). Answer: `Words`, its id, or nothing where there
    is none of that hash and no bundle came along."""

    spec_hash: str
    bundle: Bundle | None = None


class Said(Message, frozen=True, tag="turn"):
    turn: Turn


class Words(Message, frozen=True, tag="text"):
    text: str


class Failed(Message, frozen=True, tag="failed"):
    """The request failed: `kind` names a class of `envfarm.errors` or a built-in exception of a box call."""

    kind: str
    message: str
    code: str = "EXECUTION_ERROR"  # OpenEnv's error code
    errno: int = 0


Request = Reset | Step | Finish | Oracle | Random | Fork | Release
Reply = Said | Words | Failed

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_message = msgspec.msgpack.Decoder(Request | Attach | Leave | Bring).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def _tree(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for below in cls.__subclasses__():
        yield from _tree(below)


_BOX_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, OSError, ValueError)


def failed(error: Exception, code: str = "EXECUTION_ERROR") -> Failed:
    """`error`, ready to travel."""
    kind = type(error).__name__
    if isinstance(error, OSError):
        return Failed(kind, error.strerror or str(error), code, error.errno or 0)
    return Failed(kind, str(error), code)


def as_exception(reply: Failed) -> Exception:
    """The exception that `reply` was made from, as the same class; of an unknown class, an `InfraError`."""
    for cls in _tree(EnvfarmError):
        if cls.__name__ == reply.kind and cls.__module__ == errors.__name__:
            return cls(reply.message)
    for builtin in _BOX_ERRORS:
        if builtin.__name__ == reply.kind:
            if issubclass(builtin, OSError):
                return builtin(reply.errno or errno.EIO, reply.message)
            return builtin(reply.message)
    return errors.InfraError(f"{reply.kind}: {reply.message}")


def as_turn(reply: Reply) -> Turn:
    """The turn of a reply. Raises: what the other side raised."""
    if type(reply) is Said:
        return reply.turn
    raise as_exception(reply) if isinstance(reply, Failed) else _unexpected(reply)


def as_words(reply: Reply) -> str:
    """The text of a reply. Raises: what the other side raised."""
    if type(reply) is Words:
        return reply.text
    raise as_exception(reply) if isinstance(reply, Failed) else _unexpected(reply)


def _unexpected(reply: Any) -> EnvfarmError:
    return errors.InfraError(f"the worker answered with an unexpected {type(reply).__name__}")


NO_EPISODE = failed(EnvironmentFault("no episode is running on this connection; reset first"))
