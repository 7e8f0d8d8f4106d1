"""Checkpoints on disk: named arrays and a few facts, each an npz file, whole or not at all."""

import contextlib
import json
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from dcasgd_jax import archives, files

_FORMAT = 3
_LOCK = ".lock"
_PATIENCE_SECONDS = 3.0  # a large process takes a while to die
_FACTS = "facts"


class Saved(NamedTuple):
    """What a checkpoint holds."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]  # what JSON can hold


class Store:
    """The checkpoints of one run in a directory: `<events done>.npz`.

    Saving goes on in the background; leaving the `with` block waits for it. A checkpoint appears
    under its name when it is complete: whoever is killed leaves those before it untouched.

    Raises:
      BlockingIOError: If another process, or another store of this one, saves there.
    """

    def __init__(self, directory: pathlib.Path, keep: int):
        self._directory, self._keep = directory, keep
        self._lock = _lock(directory)  # first of all: what is left over is not being written
        for path in directory.iterdir():
            if re.fullmatch(r"\.\d+\.npz\..+", path.name):  # as `files.replacing` calls them
                with contextlib.suppress(OSError):
                    path.unlink()
        self._writer = futures.ThreadPoolExecutor(1)
        self._writing: futures.Future[None] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._wait()
        finally:
            self._writer.shutdown()
            self._lock.release()

    def newest(self, check: Callable[[dict[str, Any]], None]) -> Saved | None:
        """The newest checkpoint that can be read; `check` may refuse it for its facts.

        Those after it that cannot be read are moved aside, with a warning.
        """
        unreadable: dict[int, Exception] = {}
        for event in reversed(self._events()):
            try:
                saved = _unpack(archives.load(self._path(event)), event)
            except MemoryError:  # no fault of the file
                raise
            except Exception as error:
                unreadable[event] = error
                continue
            check(saved.facts)
            for other, error in unreadable.items():
                self._move_aside(other, error, event)
            return saved
        if unreadable:
            event, error = next(iter(unreadable.items()))
            raise ValueError(
                f"No checkpoint in {self._directory} can be read; of event {event}: "
                f"{_one_line(error)}. Pass another directory, or delete this one to start over."
            )
        return None

    def save(self, event: int, saved: Saved) -> None:
        """Begins to save, after the save before; the arrays must not change any more.

        Raises:
          OSError: If the save before failed.
        """
        self._wait()
        self._writing = self._writer.submit(self._write, event, saved)

    def _write(self, event: int, saved: Saved) -> None:
        if any(other >= event for other in self._events()):  # on a file system without locks
            raise FileExistsError(f"event {event} has been saved there, as by another process")
        archives.save(self._path(event), _pack(event, saved), compressed=False)
        for other in self._events()[: -self._keep]:
            self._path(other).unlink(missing_ok=True)

    def _wait(self) -> None:
        if self._writing is None:
            return
        try:
            self._writing.result()
        except Exception as error:
            self._writing = None
            raise OSError(
                f"A checkpoint could not be saved in {self._directory} ({_one_line(error)}). Those "
                "before it are intact: call again with room on the disk to go on from them."
            ) from error

    def _events(self) -> list[int]:
        names = [re.fullmatch(r"(\d+)\.npz", path.name) for path in self._directory.iterdir()]
        return sorted(int(name[1]) for name in names if name)

    def _path(self, event: int) -> pathlib.Path:
        return self._directory / f"{event}.npz"

    def _move_aside(self, event: int, error: Exception, good: int) -> None:
        path = self._path(event)
        aside = path.with_name(f"{path.name}.unreadable")
        path.replace(aside)
        warnings.warn(
            f"The checkpoint {path} cannot be read ({_one_line(error)}): going on from event "
            f"{good} instead. It is now {aside.name}.",
            RuntimeWarning,
            stacklevel=2,
        )


def _pack(event: int, saved: Saved) -> dict[str, np.ndarray]:
    """The entries of a file."""
    arrays = saved.arrays.items()
    facts = {
        "format": _FORMAT,
        "event": event,
        "facts": saved.facts,
        "dtypes": {name: array.dtype.name for name, array in arrays},
    }
    return {
        _FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8),
        **{name: array.view(_kept_dtype(array)) for name, array in arrays},
    }


def _kept_dtype(array: np.ndarray) -> np.dtype:
    """Its own, or, where that is known to another package only, an integer of its size."""
    registered = array.dtype.isbuiltin == 2  # such as bfloat16
    return np.dtype(f"u{array.itemsize}") if registered else array.dtype


def _unpack(entries: dict[str, np.ndarray], event: int) -> Saved:
    """What `_pack` packed; raises if it is of another event, or of another release."""
    if _FACTS not in entries:
        raise ValueError("it has no facts")
    facts = json.loads(entries.pop(_FACTS).tobytes())
    if facts["format"] != _FORMAT:
        raise ValueError(f"its format is {facts['format']}, and this release knows {_FORMAT}")
    if facts["event"] != event:
        raise ValueError(f"it is the checkpoint of event {facts['event']}")
    if entries.keys() != facts["dtypes"].keys():
        raise ValueError("its arrays are not those that were saved")
    for name, dtype in facts["dtypes"].items():
        if entries[name].dtype.name != dtype:
            entries[name] = entries[name].view(dtype)
    return Saved(entries, facts["facts"])


def _lock(directory: pathlib.Path) -> files.Lock:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return files.Lock(directory / _LOCK, _PATIENCE_SECONDS)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{directory} is in use: {error} saves checkpoints there. Wait until that run is over "
            "or end it, or pass another directory; nothing has been changed."
        ) from None


def make_directory(directory: pathlib.Path) -> None:
    """Creates the directory; OSError says why it is none, or why nothing can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise type(error)(
            f"Cannot save checkpoints in {directory}: {error}. Checkpoint.directory must be a "
            "directory that can be written to, or a path where one can be made."
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
