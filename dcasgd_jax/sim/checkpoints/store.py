"""Checkpoints on disk: named arrays and a few facts, whole or not at all. Needs orbax."""

import contextlib
import json
import pathlib
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dcasgd_jax import files
from dcasgd_jax.sim import leaves

_FORMAT = 2
_LOCK = ".lock"
_PATIENCE_SECONDS = 3.0  # a large process takes a while to die
_MARKER = "_CHECKPOINT_METADATA"  # orbax writes it into a checkpoint before it appears


class Saved(NamedTuple):
    """What a checkpoint holds."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]  # what JSON can hold


class Store:
    """The checkpoints of one run in a directory, each named by the number of events done.

    Saving goes on in the background; leaving the `with` block waits for it. A checkpoint appears
    under its name when it is complete: whoever is killed leaves those before it untouched.

    Raises:
      BlockingIOError: If another process, or another store of this one, saves there.
    """

    def __init__(self, directory: pathlib.Path, keep: int):
        ocp = import_orbax()
        self._directory, self._args = directory, ocp.args
        self._lock = _lock(directory)  # first of all: orbax removes what others are writing
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            # In the background, a directory that cannot be made would be waited for, for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            self._manager = ocp.CheckpointManager(directory, options=options)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            with self._saving():
                self._manager.wait_until_finished()
        finally:
            try:
                self._manager.close()
            finally:
                self._lock.release()

    def newest(self, check: Callable[[dict[str, Any]], None]) -> Saved | None:
        """The newest checkpoint that can be read; `check` may refuse it for its facts.

        Those after it that cannot be read are moved aside, with a warning.
        """
        unreadable: dict[int, Exception] = {}
        for event in sorted(self._manager.all_steps(), reverse=True):
            try:
                facts = self._read_facts(event)
            except Exception as error:  # whatever a damaged file makes orbax raise
                unreadable[event] = error
                continue
            check(facts["facts"])
            try:
                saved = Saved(self._read_arrays(event, facts), facts["facts"])
            except Exception as error:
                unreadable[event] = error
                continue
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
        """Begins to save; the arrays must not change any more."""
        content = _join(saved.arrays)
        facts = {
            "event": event,
            "facts": saved.facts,
            "arrays": [
                [name, array.dtype.name, array.shape] for name, array in saved.arrays.items()
            ],
            "checksum": zlib.crc32(content.data),
        }
        items = self._args.Composite(
            arrays=self._args.PyTreeSave({"content": content}),
            facts=self._args.JsonSave(_sealed(facts)),
        )
        with self._saving():
            begun = self._manager.save(event, args=items)
        if not begun:
            raise RuntimeError(
                f"{self._directory} refused the checkpoint of event {event}: does another process "
                "save there? Give each run a directory of its own."
            )

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Orbax tells of what failed in the background at the next save, or at the end."""
        try:
            yield
        except Exception as error:
            raise OSError(
                f"A checkpoint could not be saved in {self._directory} ({_one_line(error)}). Those "
                "before it are intact: call again with room on the disk to go on from them."
            ) from error

    def _read_facts(self, event: int) -> dict[str, Any]:
        if not (self._directory / str(event) / _MARKER).exists():
            raise FileNotFoundError(f"it has no {_MARKER}, so it was never completed")
        items = self._args.Composite(facts=self._args.JsonRestore())
        facts = _unsealed(self._manager.restore(event, args=items).facts)
        if facts["event"] != event:
            raise ValueError(f"it is the checkpoint of event {facts['event']}")
        return facts

    def _read_arrays(self, event: int, facts: dict[str, Any]) -> dict[str, np.ndarray]:
        items = self._args.Composite(arrays=self._args.PyTreeRestore())
        content = self._manager.restore(event, args=items).arrays["content"]
        if zlib.crc32(content.data) != facts["checksum"]:
            raise ValueError("its arrays are not those that were saved")
        return _split(content, facts["arrays"])

    def _move_aside(self, event: int, error: Exception, good: int) -> None:
        path = self._directory / str(event)
        aside = path.with_name(f"{event}.unreadable")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        self._manager.reload()
        warnings.warn(
            f"The checkpoint {path} cannot be read ({_one_line(error)}): going on from event "
            f"{good} instead. It is now {aside.name}.",
            RuntimeWarning,
            stacklevel=2,
        )


def _lock(directory: pathlib.Path) -> files.Lock:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return files.Lock(directory / _LOCK, _PATIENCE_SECONDS)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{directory} is in use: {error} saves checkpoints there. Wait until that run is over "
            "or end it, or pass another directory; nothing has been changed."
        ) from None


def _sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with a checksum of their own, for JSON."""
    text = json.dumps(facts)
    return {"format": _FORMAT, "text": text, "checksum": zlib.crc32(text.encode())}


def _unsealed(stored: dict[str, Any]) -> dict[str, Any]:
    """The facts that `_sealed` sealed."""
    if stored["format"] != _FORMAT:
        raise ValueError(f"its format is {stored['format']}, and this release knows {_FORMAT}")
    if zlib.crc32(stored["text"].encode()) != stored["checksum"]:
        raise ValueError("its facts are not those that were saved")
    return json.loads(stored["text"])


def _join(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """All arrays as bytes in a row, one more than there are, because orbax saves no empty array.

    One array instead of many: bytes of every dtype survive, and of many that orbax reads at once,
    the others break loudly when one is damaged.
    """
    content = np.zeros(sum(array.nbytes for array in arrays.values()) + 1, np.uint8)
    start = 0
    for array in arrays.values():
        content[start : start + array.nbytes] = leaves.to_bytes(array)
        start += array.nbytes
    return content


def _split(content: np.ndarray, descriptions: list[Any]) -> dict[str, np.ndarray]:
    """The arrays that `_join` joined."""
    arrays, start = {}, 0
    for name, dtype_name, shape in descriptions:
        array = np.empty(shape, dtype_name)
        leaves.to_bytes(array)[:] = content[start : start + array.nbytes]
        arrays[name] = array
        start += array.nbytes
    return arrays


def import_orbax() -> Any:
    """The module `orbax.checkpoint`; ModuleNotFoundError says how to get it."""
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"checkpoint= needs orbax-checkpoint: pip install dcasgd-jax[checkpoint]. ({error})"
        ) from None
    return ocp


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
