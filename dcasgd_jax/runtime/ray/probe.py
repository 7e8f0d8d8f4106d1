"""Whether it is a Ray cluster that answers at an address: the first call that Ray's clients make.

Ray's head speaks gRPC, which is HTTP/2. No client of Ray's can be used for this: it goes on asking
for half a minute, or without end. Some answer of gRPC is enough, such as that a token is missing,
unless it says that the call is unknown, as the other ports of a cluster do.
"""

import socket
import time
from typing import IO

_DATA, _HEADERS, _RESET, _SETTINGS, _GO_AWAY = 0, 1, 3, 4, 7
_END_OF_STREAM, _END_OF_HEADERS = 1, 4
_TYPE = b"application/grpc"
_CODED_TYPE = bytes.fromhex("1d75d0620d263d4c4d6564")  # the same as a proxy may write it
_UNKNOWN_CALL = b"grpc-status\x0212"


def is_ray(host: str, port: int, patience_seconds: float) -> bool:
    """Asks whoever listens there.

    Raises:
      OSError: If nobody does, or says nothing for so long.
    """
    until = time.monotonic() + patience_seconds
    with socket.create_connection((host, port), patience_seconds) as connection:
        connection.sendall(_call())
        stream = connection.makefile("rb")
        while True:
            connection.settimeout(max(until - time.monotonic(), 0.001))
            kind, content = _read_frame(stream)
            if kind == _HEADERS:
                return (_TYPE in content or _CODED_TYPE in content) and _UNKNOWN_CALL not in content
            if kind in (None, _RESET, _GO_AWAY):
                return False


def _read_frame(stream: IO[bytes]) -> tuple[int | None, bytes]:
    """Kind and content of a frame; None for what is no frame, or the end."""
    head = stream.read(9)
    size = int.from_bytes(head[:3], "big")
    if len(head) < 9 or size > 1 << 14 or head[3] > 9:
        return None, b""
    return head[3], stream.read(size)


def _call() -> bytes:
    """A client's hello, its settings, and an empty message to the call as stream 1."""
    text = lambda value: bytes([len(value)]) + value
    headers = [
        b"\x83\x86\x04" + text(b"/ray.rpc.NodeInfoGcsService/GetClusterId"),  # POST, http, path
        b"\x01" + text(b"ray"),  # authority
        b"\x0f\x10" + text(_TYPE),
        b"\x00" + text(b"te") + text(b"trailers"),
    ]
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_OF_HEADERS, 1, b"".join(headers))
        + _frame(_DATA, _END_OF_STREAM, 1, bytes(5))
    )


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    head = len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + content
