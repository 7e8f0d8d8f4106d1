"""Telling a logger of a run while it runs: means over windows of events, and evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dcasgd_jax.loggers import Logger
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.sim import leaves
from dcasgd_jax.sim.problem import Recording
from dcasgd_jax.sim.sweeps.members import PerMember


class Windows:
    """Collects rows of events; of each window that is full, a logger hears.

    A window ends with every event whose number, counted from 1, is a multiple of `every`, and with
    the last one, if that is known.
    """

    def __init__(self, logger: Logger, every: int, last: int | None = None):
        self._logger, self._every, self._last = logger, every, last
        self._waiting: dict[str, np.ndarray] = {}
        self._means: frozenset[str] = frozenset()

    def add(
        self,
        means: Mapping[str, np.ndarray],
        lasts: Mapping[str, np.ndarray],
        evaluations: Sequence[tuple[int, int, Mapping[str, float]]] = (),
    ) -> None:
        """Takes the rows of some events, in order.

        Args:
          means: Columns whose mean over the applied events is told.
          lasts: Columns whose last entry is told; besides "event", its number, "step", the version
            after it, and "applied", whether it counts in the means.
          evaluations: Event, version and values.
        """
        rows, self._means = {**means, **lasts}, frozenset(means)
        if self._waiting:
            rows = {name: np.concatenate([self._waiting[name], rows[name]]) for name in rows}
        told: dict[int, tuple[int, dict[str, float]]] = {
            event: (step, dict(values)) for event, step, values in evaluations
        }
        full = (rows["event"] + 1) % self._every == 0
        ends = np.flatnonzero(full | (rows["event"] == self._last)) + 1
        for first, end in zip([0, *ends], ends, strict=False):
            event, step, values = self._summary(rows, slice(first, end))
            told[event] = step, values | told.get(event, (step, {}))[1]
        rest = slice(ends[-1] if len(ends) else 0, None)
        self._waiting = {name: column[rest] for name, column in rows.items()}
        self._tell(told)

    def close(self) -> None:
        """Tells of the last window, though it is not full."""
        if self._waiting and len(self._waiting["event"]):
            event, step, values = self._summary(self._waiting, slice(None))
            self._waiting = {}
            self._tell({event: (step, values)})

    def _summary(
        self, rows: Mapping[str, np.ndarray], window: slice
    ) -> tuple[int, int, dict[str, float]]:
        """Event, step and values of a window."""
        applied = rows["applied"][window]
        values = {}
        for name, column in rows.items():
            of_window = column[window]
            if name in self._means:
                used = of_window[applied]
                values[name] = float(used.mean()) if len(used) else np.nan
            elif name not in ("event", "step", "applied"):
                values[name] = float(of_window[-1])
        return int(rows["event"][window][-1]), int(rows["step"][window][-1]), values

    def _tell(self, told: Mapping[int, tuple[int, dict[str, float]]]) -> None:
        for event in sorted(told):
            self._logger.log(*told[event])


class Watch:
    """What an engine tells of its events, put beside the schedule.

    Args:
      windows: Who hears.
      schedule: Of the run.
      samples: Examples trained on up to each event, [num_events].
    """

    def __init__(self, windows: Windows, schedule: schedules.Schedule, samples: np.ndarray):
        self._windows, self._schedule, self._samples = windows, schedule, samples
        # Once, not for every chunk: both are made of all events.
        self._steps = schedule.version + schedule.updates
        self._staleness = schedule.staleness.astype(np.float64)

    def add(
        self, event: np.ndarray, metrics: Mapping[str, np.ndarray], evaluated: Any, evaluations: Any
    ) -> None:
        """Takes what some events report; `evaluated`: those after which there is an evaluation."""
        of = self._schedule
        means = {name: np.asarray(column, np.float64) for name, column in metrics.items()}
        numbers = leaves.numbers_by_name(evaluations, np.shape(evaluated))
        made = [
            (
                int(k),
                int(of.version[k]) + 1,
                {
                    **{f"eval/{name}": float(column[i]) for name, column in numbers.items()},
                    "samples": float(self._samples[k]),
                    "time": float(of.update_time[k]),
                },
            )
            for i, k in enumerate(evaluated)
        ]
        self._windows.add(
            {**means, "staleness": self._staleness[event]},
            {
                "event": event,
                "step": self._steps[event],
                "applied": of.applied[event],
                "samples": self._samples[event],
                "time": of.time[event],
            },
            made,
        )

    def close(self) -> None:
        """See `Windows.close`."""
        self._windows.close()


def watch(
    recording: Recording, schedule: schedules.Schedule, samples: np.ndarray, stop: int
) -> Watch | None:
    """Of a run until an event; None if nobody listens, or another process tells already."""
    if recording.logger is None or jax.process_index():
        return None
    return Watch(Windows(recording.logger, recording.log_every, stop - 1), schedule, samples)


def of_member(recording: Recording, member: int) -> Recording:
    """What one member of a sweep records: with a logger of its own, or under a name of its own."""
    logger: Any = recording.logger
    if isinstance(logger, PerMember):
        return recording._replace(logger=logger.values[member])
    return recording if logger is None else recording._replace(logger=_Member(logger, member))


class _Member:
    """Puts the number of a member before every name."""

    def __init__(self, logger: Logger, member: int):
        self._logger, self._prefix = logger, f"member{member}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        named = {f"{self._prefix}/{name}": value for name, value in values.items()}
        self._logger.log(step, named)
