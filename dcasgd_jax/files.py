"""Files that appear whole or not at all, and files that one process holds at a time."""

import contextlib
import os
import pathlib
import secrets
import socket
import time
import weakref
from collections.abc import Iterator
from typing import IO

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` when the block ends, and nothing if it fails."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Not by `tempfile`, whose files are private: here the usual permissions hold, and no thread has
    # to change the umask of all to learn them.
    stream = temporary.open("xb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut may leave the name without the content
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def wait_for_lock(stream: IO) -> None:
    """Waits until no other process has locked the file; closing the stream lets go of it."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)


class Lock:
    """A file that one process holds at a time, until it releases it or dies.

    Args:
      path: Of the file; made here, and removed by `release`.
      patience_seconds: How long to wait for a holder that may be dying, ≥ 0.

    Raises:
      BlockingIOError: If somebody holds it; says who.
    """

    def __init__(self, path: str | os.PathLike, patience_seconds: float = 0.0):
        self._path = pathlib.Path(path)
        until = time.monotonic() + patience_seconds
        while not self._take():
            if time.monotonic() >= until:
                raise BlockingIOError(self._holder or "another process")
            time.sleep(0.02)
        self._stream.truncate(0)
        self._stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._stream.flush()
        _held.add(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def release(self) -> None:
        """Lets another process have it."""
        if self._is_there():
            self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """What a forked child does: the parent still has it."""
        self._stream.close()

    def _take(self) -> bool:
        self._stream = self._path.open("a+", encoding="utf-8")
        if _try_to_lock(self._stream) and self._is_there():
            return True
        self._stream.seek(0)
        self._holder = self._stream.read().strip()
        self._stream.close()
        return False

    def _is_there(self) -> bool:
        """Whether the open file is the one at the path, not one that its holder has removed."""
        if self._stream.closed:
            return False
        try:
            return os.path.samestat(os.fstat(self._stream.fileno()), self._path.stat())
        except OSError:
            return False


def _try_to_lock(stream: IO) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_inherited() -> None:
    for lock in list(_held):
        lock.close()


# A forked child would go on holding what its parent held, even after the parent is killed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
