"""Faults: what goes wrong in a run, as values given to `make_schedule`.

A worker's gradients count from 0 in the order in which they are pushed; one that is stopped or lost
in a crash is not. A fault after the end of the run does nothing.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from dcasgd_jax import checks


class _CheckedFault:
    """Checks the fields that faults share."""

    worker: int

    def __post_init__(self):
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            name = f"{type(self).__name__}.{field.name}"
            if field.name in ("worker", "push"):
                checks.check_fields(self, **{field.name: 0})
                continue
            checks.check_kind(name, value, checks.is_number, "a number")
            if field.name == "factor":
                if not (value > 0 and math.isfinite(value)):
                    raise ValueError(f"{name} must be positive and finite, got {value}.")
            elif not (value >= 0 and (math.isfinite(value) or field.name == "stop")):
                raise ValueError(f"{name} must be a time >= 0 in seconds, got {value}.")


@dataclasses.dataclass(frozen=True)
class Crash(_CheckedFault):
    """A worker stops: what it computes or has under way is lost, and it pushes no more.

    Barriers and clocks count only live workers. A push that would arrive at this very instant is
    lost as well.

    Args:
      worker: Who crashes.
      time: Simulated seconds ≥ 0.
    """

    worker: int
    time: float


@dataclasses.dataclass(frozen=True)
class Restart(_CheckedFault):
    """A crashed worker is back: it pulls at once and begins a new gradient.

    Args:
      worker: Who restarts.
      time: Simulated seconds, not before its crash.
    """

    worker: int
    time: float


@dataclasses.dataclass(frozen=True)
class LateJoin(_CheckedFault):
    """A worker takes part only from some time on, when it pulls first.

    Args:
      worker: Who comes late.
      time: Simulated seconds ≥ 0.
    """

    worker: int
    time: float


@dataclasses.dataclass(frozen=True)
class SlowDown(_CheckedFault):
    """Computations that a worker starts in a window of time take longer; windows multiply.

    Args:
      worker: Who is slow.
      start: The first instant of the window, simulated seconds.
      stop: The first instant after it.
      factor: > 0, how many times longer.
    """

    worker: int
    start: float
    stop: float
    factor: float

    def __post_init__(self):
        super().__post_init__()
        if self.stop <= self.start:
            raise ValueError(
                f"SlowDown.stop must be later than start, got {self.start} to {self.stop} s."
            )


@dataclasses.dataclass(frozen=True)
class LostPush(_CheckedFault):
    """A gradient never reaches the server; its worker goes on as after one that was dropped.

    Args:
      worker: Whose gradient.
      push: Which one, from 0.
    """

    worker: int
    push: int


@dataclasses.dataclass(frozen=True)
class DuplicatedPush(_CheckedFault):
    """A gradient arrives a second time right after the first, and the server takes it for new.

    Args:
      worker: Whose gradient.
      push: Which one, from 0.
    """

    worker: int
    push: int


@dataclasses.dataclass(frozen=True)
class NaNGradient(_CheckedFault):
    """A gradient arrives as NaN.

    Args:
      worker: Whose gradient.
      push: Which one, from 0.
    """

    worker: int
    push: int


class LifeEvent(NamedTuple):
    """A worker begins, ends or resumes its part in the run; in this order at one instant."""

    time: float
    kind: int  # JOIN, CRASH or RESTART
    worker: int


JOIN, CRASH, RESTART = range(3)
_LIFE = {LateJoin: JOIN, Crash: CRASH, Restart: RESTART}


class FaultPlan:
    """The faults of a run, checked against each other and sorted by what needs them."""

    def __init__(self, faults: Sequence[object], num_workers: int):
        is_fault = lambda value: isinstance(value, _CheckedFault)
        checks.check_kind(
            "faults", faults, lambda value: isinstance(value, list | tuple | set | frozenset),
            "a sequence of faults",
            "Of a single one make a list: faults=[...]." if is_fault(faults) else "",
        )  # fmt: skip
        for fault in faults:
            checks.check_kind("A fault", fault, is_fault, "one of sim.Crash and its neighbours")
            assert isinstance(fault, _CheckedFault)
            if fault.worker >= num_workers:
                raise ValueError(f"{fault} is about a worker that is not in [0, {num_workers}).")

        def pushes(kind: type[LostPush] | type[DuplicatedPush] | type[NaNGradient]):
            return {(fault.worker, fault.push) for fault in faults if isinstance(fault, kind)}

        self.lost: set[tuple[int, int]] = pushes(LostPush)  # (worker, push)
        self.duplicated: set[tuple[int, int]] = pushes(DuplicatedPush)
        self.corrupt: set[tuple[int, int]] = pushes(NaNGradient)
        self.slow_downs: dict[int, list[SlowDown]] = {}
        for fault in faults:
            if isinstance(fault, SlowDown):
                self.slow_downs.setdefault(fault.worker, []).append(fault)
        self.any = bool(faults)
        late = {f.worker for f in faults if isinstance(f, LateJoin)}
        self.life = sorted(
            [LifeEvent(float(f.time), _LIFE[type(f)], f.worker) for f in faults if type(f) in _LIFE]  # type: ignore[attr-defined]
            + [LifeEvent(0.0, JOIN, m) for m in range(num_workers) if m not in late]
        )
        self._check_lives(num_workers)
        for worker, push in self.lost & self.duplicated:
            raise ValueError(f"Push {push} of worker {worker} is both lost and duplicated.")

    def slow_down(self, worker: int, start: float) -> float:
        """How many times longer a computation takes that begins then."""
        factor = 1.0
        for slow_down in self.slow_downs.get(worker, ()):
            if slow_down.start <= start < slow_down.stop:
                factor *= slow_down.factor
        return factor

    def _check_lives(self, num_workers: int) -> None:
        """Joins, crashes and restarts of each worker must follow each other."""
        last: list[LifeEvent | None] = [None] * num_workers
        for event in self.life:
            before = last[event.worker]
            last[event.worker] = event
            who = f"Worker {event.worker}"
            if event.kind == JOIN and before is not None:
                raise ValueError(
                    f"{who} joins at {event.time} s, but something has happened to it at "
                    f"{before.time} s already."
                )
            if event.kind == CRASH and before is None:
                raise ValueError(f"{who} crashes at {event.time} s, before it joins.")
            if event.kind == CRASH and before is not None and before.kind == CRASH:
                raise ValueError(
                    f"{who} crashes at {event.time} s, but has not restarted since its crash at "
                    f"{before.time} s."
                )
            if event.kind == RESTART and (before is None or before.kind != CRASH):
                raise ValueError(f"{who} restarts at {event.time} s without a crash before it.")
