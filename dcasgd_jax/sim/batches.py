"""Where the batches of a run come from: arrays, rows that point into examples, or an iterator."""

import itertools
import queue
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree


@document_fields
class Indexed(NamedTuple):
    """Batches as rows that point into examples which stay on the device.

    Args:
      examples: A tree of arrays `[num_examples, ...]`, moved to the device once.
      rows: `[num_events, batch_size]` integers: event k trains on `examples[rows[k]]`; from
        `ShardedEpochs(...).rows(schedule)`, for instance.

    Example:
      >>> import numpy as np
      >>> from dcasgd_jax import sim
      >>> batches = sim.Indexed({"x": np.ones((100, 4))}, rows=np.zeros((20, 8), np.int32))
    """

    examples: PyTree
    rows: Any


class Batches(Protocol):
    """What an engine needs of the batches: event 0 is the first event of the run."""

    def chunk(self, events: slice) -> PyTree:
        """The batches of consecutive events, stacked; each chunk is asked for once, in order."""
        ...

    def one(self, event: int) -> PyTree:
        """The batch of one event; each event is asked for once, in order."""
        ...

    def close(self) -> None:
        """Gives back what the source holds."""
        ...


class NoBatches:
    """For `batch_fn`, which makes its batches inside the compiled program."""

    def chunk(self, events: slice) -> PyTree:
        """See `Batches.chunk`."""

    def one(self, event: int) -> PyTree:
        """See `Batches.one`."""

    def close(self) -> None:
        """See `Batches.close`."""


class ArrayBatches:
    """Rows of arrays; `index` [num_events] says which row each event takes."""

    def __init__(self, arrays: PyTree, index: np.ndarray):
        self._arrays, self._index = arrays, index
        self._in_order = bool(np.all(np.diff(index) == 1))

    @property
    def arrays(self) -> PyTree:
        """Whole, as they were given; of `Indexed`, its rows."""
        return self._arrays

    def chunk(self, events: slice) -> PyTree:
        """See `Batches.chunk`."""
        index = self._index[events]
        if self._in_order and len(index):
            return take_rows(self._arrays, slice(int(index[0]), int(index[-1]) + 1))
        return jax.tree.map(lambda leaf: leaf[index], self._arrays)

    def one(self, event: int) -> PyTree:
        """See `Batches.one`."""
        return take_rows(self._arrays, int(self._index[event]))

    def close(self) -> None:
        """See `Batches.close`."""


class IteratorBatches:
    """Batches of a Python iterator, fetched ahead by a thread and moved to the device there.

    An event that repeats the batch of an earlier one (a push delivered twice) takes nothing from
    the iterator; batches that will be repeated are kept until then.
    """

    def __init__(self, batches: Iterable, index: np.ndarray, first: int, prefetch: int = 4):
        self._index, self._first = index, first
        self._own = index == np.arange(first, first + len(index))
        self._last_use = {int(b): k for k, b in enumerate(index)}
        self._kept: dict[int, PyTree] = {}
        self._first_described: PyTree = None
        self._queue: queue.Queue = queue.Queue(prefetch)
        self._stopping = threading.Event()
        self._source, self._given = batches, iter(batches)
        # What is set for the caller's thread alone must hold in the one that fetches, too.
        self._x64 = jax.dtypes.result_type(float) == np.float64
        self._thread: threading.Thread | None = None

    def peek(self) -> PyTree:
        """The first batch, which stays to be taken."""
        end = object()
        first = next(self._given, end)
        if first is end:
            raise ValueError("The iterator of batches is empty: it must give one per event.")
        self._given = itertools.chain([first], self._given)
        self._first_described = _describe(first)
        return first

    def one(self, event: int) -> PyTree:
        """See `Batches.one`."""
        batch_of = int(self._index[event])
        if self._own[event]:
            batch = self._next(event)
            if self._last_use[batch_of] > event:
                self._kept[batch_of] = batch
            return batch
        if batch_of not in self._kept:
            raise ValueError(
                f"Event {self._first + event} repeats the batch of event {batch_of}, which came "
                "before this call and is gone: pass the batches as arrays."
            )
        last = self._last_use[batch_of] == event
        return self._kept.pop(batch_of) if last else self._kept[batch_of]

    def skip(self, count: int) -> None:
        """Passes over the batches of the first `count` events; those to repeat are kept.

        A source with a method `starting_at(num_batches)` is not made to produce what is passed.
        """
        positions = np.flatnonzero(self._own[:count])
        repeats = any(self._last_use[int(self._index[k])] >= count for k in positions)
        starting_at = getattr(self._source, "starting_at", None)
        if starting_at is not None and not repeats:
            self._given = iter(starting_at(len(positions)))
            self._own[:count] = False
            return
        for event in range(count):
            self.one(event)

    def chunk(self, events: slice) -> PyTree:
        """See `Batches.chunk`."""
        batches = [jax.device_get(self.one(k)) for k in range(events.start, events.stop)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def close(self) -> None:
        """Stops the thread."""
        self._stopping.set()

    def _next(self, event: int) -> PyTree:
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch, daemon=True)
            self._thread.start()
        kind, value = self._queue.get()
        if kind == "error":
            raise value
        if kind == "end":
            raise ValueError(
                f"The iterator of batches ended at event {self._first + event}: it must give one "
                "batch per event of the run."
            )
        self._check_like_first(value, self._first + event)
        return value

    def _check_like_first(self, batch: PyTree, event: int) -> None:
        """All batches of a run go through one program, and count as equally many examples."""
        described = _describe(batch)
        if self._first_described is None or described == self._first_described:
            return
        if jax.tree.structure(described) == jax.tree.structure(self._first_described):
            named = jax.tree_util.tree_leaves_with_path(described)
            firsts = jax.tree.leaves(self._first_described)
            pairs = zip(named, firsts, strict=True)
            name, found, wanted = next(
                (jax.tree_util.keystr(path), leaf, first)
                for (path, leaf), first in pairs
                if leaf != first
            )
        else:
            name, found, wanted = "", described, self._first_described
        raise ValueError(
            f"The iterator's batch{name} for event {event} is {found}, but that of the first event "
            f"is {wanted}: all batches must be alike. Of an incomplete last batch, drop the last "
            "or pad it."
        )

    def _fetch(self) -> None:
        """Runs in the thread: fills the queue until the run is over."""
        try:
            needed = int(self._own.sum())
            for batch in itertools.islice(self._given, needed):
                with jax.enable_x64(self._x64):
                    self._put("batch", jax.device_put(_own_copy(batch)))
                if self._stopping.is_set():
                    return
            self._put("end", None)
        # Whatever ends this thread must arrive in the caller's, which would wait for ever.
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value) -> None:
        while not self._stopping.is_set():
            try:
                return self._queue.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
        return None


def iterates(batches: Any) -> bool:
    """Whether these are batches to iterate over, rather than a tree of arrays."""
    is_tree = isinstance(batches, list | tuple | Mapping) or hasattr(batches, "shape")
    return hasattr(batches, "__iter__") and not is_tree


def _own_copy(batch: PyTree) -> PyTree:
    """In memory that a source which fills one buffer again and again does not write to."""
    may_change = lambda leaf: hasattr(leaf, "__array__") and not isinstance(leaf, jax.Array)
    return jax.tree.map(lambda leaf: np.array(leaf) if may_change(leaf) else leaf, batch)


def _describe(batch: PyTree) -> PyTree:
    """Shape and dtype of every array, in words."""
    describe = lambda leaf: f"{jax.dtypes.result_type(leaf)} {list(np.shape(leaf))}"
    return jax.tree.map(describe, batch)


def take_rows(tree: PyTree, index: slice | int) -> PyTree:
    """Row or rows `index` of every leaf; a leaf that is taken whole is not copied."""

    def take(leaf):
        whole = isinstance(index, slice) and index.start == 0 and index.stop == len(leaf)
        return leaf if whole else leaf[index]

    return jax.tree.map(take, tree)
