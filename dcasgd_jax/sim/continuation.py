"""Going on from a state: whether it holds what the rest of a schedule needs.

Slots are given to versions with knowledge of the reads to come, so a longer schedule with the same
beginning may need a version that is gone.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import program as programs
from dcasgd_jax.sim import step

_PLAYED = ("worker", "read_version", "version", "applied", "updates", "batch", "corrupt")


def mark(
    state: programs.SimState,
    schedule: schedules.Schedule,
    start: int = 0,
    versions: np.ndarray | None = None,
) -> programs.SimState:
    """The state after some events of a schedule, with a note of what it holds.

    Args:
      state: After them.
      schedule: Whose events they are.
      start: The first event that was run.
      versions: What the slots held before it. Default: version 0, as before the first event.
    """
    stop = int(state.event)
    versions = np.zeros(schedule.num_slots, np.int32) if versions is None else versions.copy()
    # Of several versions put into a slot the last one stays.
    versions[schedule.slots.current[start:stop]] = schedule.version[start:stop]
    events = jnp.asarray(_fingerprint(schedule, stop))
    return state._replace(origin=programs.Origin(events, jnp.asarray(versions)))


def resume(
    state: programs.SimState, schedule: schedules.Schedule, program: programs.Program
) -> tuple[programs.SimState, np.ndarray]:
    """The state as the engines take it, with what `schedule` needs from here on.

    Returns:
      The state, and the version in each slot.

    Raises:
      ValueError: If the state has not come about by the first events of `schedule`, or lacks a
        version or model state that a later event needs.
    """
    start, origin = int(state.event), state.origin
    versions = np.zeros(schedule.num_slots, np.int32)
    if start:
        if origin is None:
            raise ValueError(
                f"The state is at event {start}, but does not say which versions it holds "
                "(state.origin is None): pass the state of a result as it is."
            )
        if not np.array_equal(origin.events, _fingerprint(schedule, start)):
            raise ValueError(
                f"This state belongs to another schedule: the first {start} events of this one "
                "are not those that the state has been through. Pass the schedule of that run, or "
                "a longer one that begins alike; or start anew, with params=result.params and "
                "opt_state=result.opt_state."
            )
        state, versions = _fit_snapshots(state, schedule, np.asarray(origin.versions))
    return _fit_kept(state, schedule, program)._replace(origin=None), versions


def _fit_snapshots(
    state: programs.SimState, schedule: schedules.Schedule, versions: np.ndarray
) -> tuple[programs.SimState, np.ndarray]:
    """As many slots as the schedule has, once it is clear that it finds in them what it reads."""
    start = int(state.event)
    fitted = np.minimum(np.arange(schedule.num_slots), len(versions) - 1)
    reads = schedule.read_version[start:]
    # The present version is stored before it is read; older ones must be there.
    older = reads < schedule.version[start]
    gone = older & (versions[fitted][schedule.slots.read[start:]] != reads)
    for later in np.flatnonzero(gone)[:1]:
        raise ValueError(
            f"Event {start + later} reads version {reads[later]}, which the state no longer holds: "
            "the shorter schedule that it comes from knew of no later reader. Run this schedule "
            f"from its start, with stop={start} to have a state there."
        )
    if len(versions) == schedule.num_slots:
        return state, versions
    snapshots = jax.tree.map(lambda slots: slots[fitted], state.snapshots)
    return state._replace(snapshots=snapshots), versions[fitted]


def _fit_kept(
    state: programs.SimState, schedule: schedules.Schedule, program: programs.Program
) -> programs.SimState:
    """What a second delivery repeats is kept only in runs that have one."""
    if not program.repeats:
        return state._replace(last_kept=None)
    if state.last_kept is not None:
        return state
    start = int(state.event)
    repeated = schedule.batch[start:]
    for event in start + np.flatnonzero(repeated < start)[:1]:
        raise ValueError(
            f"Event {event} repeats event {schedule.batch[event]}, but the state does not hold "
            "what its worker had kept when it computed that. Run this schedule from its start, "
            f"with stop={start} to have a state there."
        )
    return state._replace(last_kept=step.kept(program, state))


def _fingerprint(schedule: schedules.Schedule, num_events: int) -> np.ndarray:
    """Of the events that have been played; uint32 [4]."""
    total = hashlib.blake2b(digest_size=16)
    for name in _PLAYED:
        total.update(getattr(schedule, name)[:num_events].tobytes())
    return np.frombuffer(total.digest(), np.uint32)
