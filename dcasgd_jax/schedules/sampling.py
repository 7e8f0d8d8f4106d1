"""Which examples each gradient is taken on: epochs without replacement, a shard per worker."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import schedule as schedules
from dcasgd_jax.schedules import waves


@dataclasses.dataclass(frozen=True)
class ShardedEpochs:
    """Epochs over a data set that the workers share out anew every time, without replacement.

    Epoch e has one random order of all examples, cut into as many equal shards as there are
    workers. A worker goes through its shard batch by batch and then, at its own pace, on to its
    shard of epoch e + 1: workers of different speed may be in different epochs. What does not fill
    a batch, or cannot be shared equally, is left out of that epoch; another epoch has another
    order. A push that is delivered twice repeats its batch; one that the server drops, or that
    arrives corrupt, has used its own.

    A sampler is a value and remembers nothing: its rows depend on its arguments and the events so
    far alone. A run that is resumed, and a longer run of the same workers, get the same rows.
    (NumPy may change its random orders in a new release; none has done so since 1.17.)

    Args:
      num_examples: Examples in the data set, at least `num_workers * batch_size`.
      batch_size: Examples of one gradient, at least 1.
      num_workers: M ≥ 1.
      seed: Integer ≥ 0.

    Raises:
      ValueError: For numbers out of range, or too few examples for one batch per worker.

    Example:
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax.schedules.sampling import ShardedEpochs
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=100, seed=0)
      >>> sampler = ShardedEpochs(60_000, batch_size=32, num_workers=4, seed=0)
      >>> sampler.rows(schedule).shape  # for simulate: batches=sim.Indexed(images, rows)
      (100, 32)
      >>> print(sampler.epochs(schedule)[-1])  # one epoch is 4 * 468 batches
      0.0534...
    """

    num_examples: int
    batch_size: int
    num_workers: int
    seed: int

    def __post_init__(self):
        checks.check_fields(self, num_examples=1, batch_size=1, num_workers=1, seed=0)
        if self.num_examples > np.iinfo(np.int32).max:
            raise ValueError(f"num_examples must fit 32 bits, got {self.num_examples}.")
        if not self.batches_per_shard:
            raise ValueError(
                f"{self.num_examples} examples shared by {self.num_workers} workers are no full "
                f"batch of {self.batch_size} for each: {self.num_workers * self.batch_size} "
                "examples would be needed, or a smaller batch_size."
            )

    @property
    def batches_per_shard(self) -> int:
        """Batches that one worker draws from one epoch."""
        return self.num_examples // self.num_workers // self.batch_size

    def rows(
        self, schedule: schedules.Schedule, num_steps: int | Sequence[int] | None = None
    ) -> np.ndarray:
        """The examples of every event's batch, indices; int32 [num_events, batch_size].

        Makes each epoch's order once, and besides the result needs memory for one of them.

        Args:
          schedule: Of `num_workers` workers.
          num_steps: As of `sim.LocalSteps`, one number or one per worker: then the result is
            [num_events, largest number, batch_size], and a worker draws as many batches as it
            takes steps; what is beyond them repeats its last. Default: one batch, without an axis.

        Raises:
          ValueError: If the schedule or the steps are of another number of workers.
        """
        self._check(schedule)
        drawn = draw(schedule, num_steps)
        epoch, position = np.divmod(drawn.nth, self.batches_per_shard)
        shard_size = self.num_examples // self.num_workers
        first = drawn.worker.astype(np.int64) * shard_size + position * self.batch_size
        in_batch = np.arange(self.batch_size)
        rows = np.empty((len(drawn.nth), self.batch_size), np.int32)
        for chosen in groups(epoch):  # a shared epoch has at most all examples
            order = self._order(int(epoch[chosen[0]]))
            rows[chosen] = order[first[chosen][:, np.newaxis] + in_batch]
        return drawn.of_events(rows)

    def epochs(self, schedule: schedules.Schedule) -> np.ndarray:
        """Epochs that the workers have gone through, on average, at each event; float64 [T].

        A number for the axis of a plot: it never decreases, and grows by one while the workers
        together draw as many batches as one epoch holds, whoever draws them. A push that is
        delivered twice counts once.

        Args:
          schedule: Of `num_workers` workers.

        Raises:
          ValueError: If the schedule has another number of workers.
        """
        self._check(schedule)
        num_batches = np.cumsum(~schedule.repeats)
        return num_batches / (self.num_workers * self.batches_per_shard)

    def _check(self, schedule: schedules.Schedule) -> None:
        check_workers(schedule, self.num_workers)

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch])
        return generator.permutation(np.arange(self.num_examples, dtype=np.int32))


class Drawn(NamedTuple):
    """The batches that a schedule takes, one after the other; a second delivery takes none."""

    schedule: schedules.Schedule
    fresh: np.ndarray  # events that take new batches
    steps: int | None  # batches of an event; None: one, without an axis
    worker: np.ndarray  # [batches], whose
    nth: np.ndarray  # int64 [batches], which of its worker's batches, from 0

    def of_events(self, rows: np.ndarray) -> np.ndarray:
        """The examples of every event, of those of all batches, [batches, batch_size]."""
        steps = () if self.steps is None else (self.steps,)
        rows = rows.reshape(len(self.fresh), *steps, rows.shape[-1])
        if len(self.fresh) == len(self.schedule):
            return rows
        found = np.empty((len(self.schedule), *rows.shape[1:]), np.int32)
        found[self.fresh] = rows
        repeats = np.flatnonzero(self.schedule.repeats)
        found[repeats] = found[self.schedule.batch[repeats]]
        return found


def draw(schedule: schedules.Schedule, num_steps: int | Sequence[int] | None) -> Drawn:
    """Which batches the pushes of each worker take.

    Raises:
      ValueError: If the steps are of another number of workers.
    """
    counts = checks.check_counts("num_steps", 1 if num_steps is None else num_steps)
    checks.check_length("num_steps", counts, schedule.num_workers)
    of_workers = np.broadcast_to(np.asarray(counts, np.int64), schedule.num_workers)
    fresh = np.flatnonzero(~schedule.repeats)
    worker = schedule.worker[fresh]
    by_worker = waves.order_by_worker(worker)
    pushes = np.bincount(worker, minlength=schedule.num_workers)
    nth_push = np.empty(len(fresh), np.int64)
    nth_push[by_worker] = np.arange(len(fresh)) - np.repeat(np.cumsum(pushes) - pushes, pushes)
    most = int(of_workers.max())
    taken = of_workers[worker][:, np.newaxis]
    step = np.minimum(np.arange(most), taken - 1)
    nth = (nth_push[:, np.newaxis] * taken + step).ravel()
    steps = None if num_steps is None else most
    return Drawn(schedule, fresh, steps, np.repeat(worker, most), nth)


def groups(keys: np.ndarray) -> list[np.ndarray]:
    """Positions with equal keys, ascending."""
    by_key = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[by_key], prepend=-1))
    return np.split(by_key, starts[1:])


def check_workers(schedule: schedules.Schedule, num_workers: int) -> None:
    """Raises ValueError unless the schedule is of as many workers as share the examples."""
    if schedule.num_workers != num_workers:
        raise ValueError(
            f"The schedule has {schedule.num_workers} workers, but the examples are shared by "
            f"{num_workers}: make the sampler with num_workers={schedule.num_workers}."
        )
