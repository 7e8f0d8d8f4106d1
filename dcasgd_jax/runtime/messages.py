"""The fixed headers of messages: 64 bytes before the raw numbers, nothing to unpickle."""

import enum
import struct
from typing import Any, NamedTuple

from dcasgd_jax.runtime.layout import Message

_PUSH = struct.Struct("<4sI Q Q q q d ? 15x")
_REPLY = struct.Struct("<4sI Q q q 32x")
_MAGIC_OF_PUSH, _MAGIC_OF_REPLY = b"DCp1", b"DCr1"


Packed = tuple[bytes, Any, Message]
"""A reply on its way: header, parameters as the server publishes them, model state."""


class Push(NamedTuple):
    """What a worker says of a gradient."""

    worker: int
    layout: int  # digest of the layout of the parameters
    life: int  # of the server that the parameters were pulled from
    read_version: int
    number: int  # which of its worker's gradients this is, from 0
    loss: float
    finite: bool  # whether all that it sends is, also to other shards: nobody looks again


class Outcome(enum.IntEnum):
    """What became of a push, or that the worker had only asked for parameters."""

    JOINED = 0
    APPLIED = 1
    DROPPED = 2  # too stale, or late behind a barrier
    NON_FINITE = 3  # refused
    UNKNOWN_VERSION = 4  # refused: taken at parameters that this server never sent
    DUPLICATE = 5  # it is here already
    DONE = 6  # the run is over


class Reply(NamedTuple):
    """What a server says to a worker, and the parameters that come with it."""

    outcome: Outcome
    life: int
    version: int
    next_number: int  # the gradient that the server expects next, at least
    payload: Any  # what the server's `publish` made of the parameters; None after a duplicate
    model_state: Message = ()  # nothing if the model has none


def pack_push(push: Push) -> bytes:
    """The header of a push."""
    return _PUSH.pack(_MAGIC_OF_PUSH, *push)


def unpack_push(header: bytes) -> Push:
    """What `pack_push` packed; ValueError if it is no such header."""
    return Push(*_fields(_PUSH, _MAGIC_OF_PUSH, header))


def pack_reply(reply: Reply) -> Packed:
    """The header of a reply, and what comes with it."""
    header = (int(reply.outcome), reply.life, reply.version, reply.next_number)
    return _REPLY.pack(_MAGIC_OF_REPLY, *header), reply.payload, reply.model_state


def unpack_reply(message: Packed) -> Reply:
    """What `pack_reply` packed; ValueError if it is no such message."""
    header, payload, model_state = message
    outcome, life, version, next_number = _fields(_REPLY, _MAGIC_OF_REPLY, header)
    return Reply(Outcome(outcome), life, version, next_number, payload, model_state)


def _fields(form: struct.Struct, magic: bytes, header: Any) -> list[Any]:
    if not isinstance(header, bytes) or len(header) != form.size or header[:4] != magic:
        raise ValueError(
            "This is no message of this release of dcasgd_jax: server and workers must run the "
            "same one."
        )
    return list(form.unpack(header)[1:])
