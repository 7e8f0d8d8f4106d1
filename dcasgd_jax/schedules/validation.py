"""What cannot have happened: the first impossible event of a schedule, in words."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from dcasgd_jax.schedules import waves
from dcasgd_jax.schedules.events import COLUMNS, Events

Fault = tuple[np.ndarray, Callable[[int], str]]  # where, bool [num_events], and what to say there


def check_events(events: Events, num_workers: int) -> None:
    """Raises ValueError, naming the first impossible event, if this cannot have happened."""
    lengths = {name: len(getattr(events, name)) for name in COLUMNS}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The schedule's arrays differ in length: {lengths}.")
    if not len(events.worker):
        raise ValueError("The schedule has no events.")
    faults = (_worker_faults(events, num_workers), _version_faults(events), _batch_faults(events),
              _time_faults(events))  # fmt: skip
    first = None
    for bad, words in itertools.chain(*faults):
        event = int(np.argmax(bad))
        if bad[event] and (first is None or event < first[0]):
            first = event, words
    if first is not None:
        event, words = first
        raise ValueError(f"Impossible schedule: at event {event} {words(event)}.")


def _worker_faults(s: Events, num_workers: int) -> Iterator[Fault]:
    """Workers that are not there."""
    yield (
        (s.worker < 0) | (s.worker >= num_workers),
        lambda k: f"worker {s.worker[k]} is not in [0, {num_workers})",
    )


def _version_faults(s: Events) -> Iterator[Fault]:
    """Versions that cannot be."""
    steps = np.diff(s.version, prepend=0)
    impossible = (steps < 0) | (steps > 1)
    impossible[0] = steps[0] != 0
    yield (
        impossible,
        lambda k: (
            f"the server is at version {s.version[k]}, but must start at 0 and go up by at most 1 "
            "from push to push"
        ),
    )
    after_dropped = steps == 1
    after_dropped[1:] &= ~s.applied[:-1]
    after_dropped[0] = False
    yield (
        after_dropped,
        lambda k: (
            f"the server goes up by one after a push that it dropped (applied is False at event "
            f"{k - 1})"
        ),
    )
    yield (
        s.read_version > s.version,
        lambda k: (
            f"it reads version {s.read_version[k]}, but the server is only at version "
            f"{s.version[k]}"
        ),
    )
    yield s.read_version < 0, lambda k: f"it reads version {s.read_version[k]}"
    yield (
        _goes_back(s),
        lambda k: (
            f"worker {s.worker[k]} reads version {s.read_version[k]}, older than one it has read "
            "before"
        ),
    )


def _batch_faults(s: Events) -> Iterator[Fault]:
    """Pushes that repeat what they cannot repeat."""
    events = np.arange(len(s.worker))
    if np.array_equal(s.batch, events):
        return
    yield (
        (s.batch < 0) | (s.batch > events),
        lambda k: f"batch is {s.batch[k]}, but must be {k} or the earlier event that it repeats",
    )
    original = np.clip(s.batch, 0, events)
    yield (
        s.batch[original] != original,
        lambda k: f"it repeats event {s.batch[k]}, which is a repetition itself",
    )
    for name in ("worker", "read_version"):
        values = getattr(s, name)
        yield (
            values[original] != values,
            lambda k, name=name, values=values: (
                f"it repeats event {s.batch[k]}, but {name} is {values[k]} here and "
                f"{values[s.batch[k]]} there"
            ),
        )


def _time_faults(s: Events) -> Iterator[Fault]:
    """Times that run backwards."""
    previous_time = np.concatenate([[0.0], s.time[:-1]])
    backwards = ~(s.time >= previous_time) | ~np.isfinite(s.time)
    yield backwards, lambda k: f"its time is {s.time[k]} s, after {previous_time[k]} s"
    yield (
        ~((s.read_time >= 0) & (s.read_time <= s.time)),
        lambda k: f"its read_time is {s.read_time[k]} s, but must be in [0, {s.time[k]}] s",
    )
    if backwards.any():  # then the default of update_time says nothing
        return
    yield (
        ~(s.update_time >= s.time) | ~np.isfinite(s.update_time),
        lambda k: f"its update_time is {s.update_time[k]} s, before its time, {s.time[k]} s",
    )
    steps, same = np.diff(s.update_time, prepend=0.0), np.diff(s.version, prepend=-1) == 0
    yield (
        (steps < 0) | (same & (steps != 0)),
        lambda k: (
            f"its update_time is {s.update_time[k]} s, after one of {s.update_time[k - 1]} s for "
            f"{'the same' if same[k] else 'an earlier'} version"
        ),
    )


def _goes_back(s: Events) -> np.ndarray:
    """Where a worker reads an older version than at its previous push; bool [num_events]."""
    # A repeated delivery carries an old read on purpose.
    first = s.batch == np.arange(len(s.worker))
    back = np.zeros(len(s.worker), bool)
    read_version, previous = s.read_version, s.previous_push
    if not first.all():
        read_version, previous = read_version[first], waves.previous_push(s.worker[first])
    back[first] = (read_version < read_version[previous]) & (previous >= 0)
    return back
