"""Workers with examples of their own: who has which, and the batches that they draw from them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import sampling
from dcasgd_jax.schedules import schedule as schedules


@dataclasses.dataclass(frozen=True, eq=False)
class FixedShards:
    """Batches from shards that stay where they are: every worker has examples of its own.

    A worker goes through its shard in a random order, batch by batch, and then again in another
    one: an epoch of a worker is its own shard, whatever the others do. What does not fill a batch
    is left out of that epoch. Otherwise as `sim.ShardedEpochs`: a second delivery repeats its
    batch, and rows depend on the arguments and the events so far alone.

    Args:
      shards: One sequence of indices of examples for each worker, such as `sim.dirichlet_shards`
        gives; an example may be in several.
      batch_size: Examples of one gradient, at least 1, at most those of the smallest shard.
      seed: Integer ≥ 0.

    Raises:
      ValueError: For a shard that is no full batch, or numbers out of range.

    Example:
      >>> import numpy as np
      >>> from dcasgd_jax import sim
      >>> labels = np.arange(1000) % 10
      >>> shards = sim.dirichlet_shards(labels, 4, alpha=0.3, seed=0, least=16)
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=100, seed=0)
      >>> sim.FixedShards(shards, batch_size=16, seed=0).rows(schedule, num_steps=8).shape
      (100, 8, 16)
    """

    shards: Sequence[np.ndarray]
    batch_size: int
    seed: int

    def __post_init__(self):
        checks.check_fields(self, batch_size=1, seed=0)
        shards = tuple(_indices(f"shards[{m}]", shard) for m, shard in enumerate(self.shards))
        if not shards:
            raise ValueError("FixedShards.shards is empty: give one for each worker.")
        object.__setattr__(self, "shards", shards)
        for m, shard in enumerate(shards):
            if len(shard) < self.batch_size:
                raise ValueError(
                    f"Worker {m} has {len(shard)} examples, which are no full batch of "
                    f"{self.batch_size}: give it more, or take a smaller batch_size."
                )

    @property
    def num_workers(self) -> int:
        """M."""
        return len(self.shards)

    def rows(
        self, schedule: schedules.Schedule, num_steps: int | Sequence[int] | None = None
    ) -> np.ndarray:
        """The examples of every event's batch, as of `sim.ShardedEpochs.rows`.

        Args:
          schedule: Of as many workers as there are shards.
          num_steps: As of `sim.LocalSteps`.

        Raises:
          ValueError: If the schedule or the steps are of another number of workers.
        """
        sampling.check_workers(schedule, self.num_workers)
        drawn = sampling.draw(schedule, num_steps)
        batches = np.array([len(shard) // self.batch_size for shard in self.shards])
        epoch, position = np.divmod(drawn.nth, batches[drawn.worker])
        rows = np.empty((len(drawn.nth), self.batch_size), np.int32)
        in_batch = np.arange(self.batch_size)
        key = drawn.worker.astype(np.int64) * (epoch.max(initial=0) + 1) + epoch
        for chosen in sampling.groups(key):
            worker, of_epoch = int(drawn.worker[chosen[0]]), int(epoch[chosen[0]])
            generator = np.random.default_rng([self.seed, worker, of_epoch])
            order = generator.permutation(self.shards[worker])
            first = position[chosen] * self.batch_size
            rows[chosen] = order[first[:, np.newaxis] + in_batch]
        return drawn.of_events(rows)


def dirichlet_shards(
    labels: Sequence[int] | np.ndarray, num_workers: int, alpha: float, seed: int, *, least: int = 1
) -> tuple[np.ndarray, ...]:
    r"""Shares out examples so that every worker has another mixture of labels.

    Each label's examples are shared by proportions :math:`p \sim Dirichlet(\alpha, ..., \alpha)`
    over the workers: a small α gives most of a label to one of them, a large one equal parts.

    Args:
      labels: `[num_examples]`, integers from 0.
      num_workers: M ≥ 1.
      alpha: α > 0.
      seed: Integer ≥ 0.
      least: Examples that every worker must get; drawn anew until all have them.

    Returns:
      For each worker the ascending indices of its examples; each example is one worker's.

    Raises:
      ValueError: For numbers out of range, or if a hundred draws left a worker with fewer than
        `least`.

    Source: Hsu, Qi and Brown, *Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification*, 2019, section 2, in the form by label that is common since.

    Example:
      >>> import numpy as np
      >>> from dcasgd_jax import sim
      >>> labels = np.arange(1000) % 10
      >>> shards = sim.dirichlet_shards(labels, 4, alpha=0.1, seed=0)
      >>> sum(map(len, shards))
      1000
      >>> sim.label_counts(labels, shards).shape
      (4, 10)
    """
    labels = _labels(labels)
    num_workers = checks.check_count("num_workers", num_workers)
    checks.check_count("seed", seed, least=0)
    checks.check_count("least", least, least=0)
    checks.check_positive("alpha", alpha)
    generator = np.random.default_rng(seed)
    for _ in range(100):
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            of_label = generator.permutation(np.flatnonzero(labels == label))
            shares = np.cumsum(generator.dirichlet(np.full(num_workers, alpha)))[:-1]
            cuts = np.round(np.nan_to_num(shares) * len(of_label)).astype(int)
            for worker, part in enumerate(np.split(of_label, cuts)):
                owner[part] = worker
        shards = tuple(np.flatnonzero(owner == worker) for worker in range(num_workers))
        if min(map(len, shards)) >= least:
            return shards
    raise ValueError(
        f"With alpha={alpha:g} a hundred draws left a worker with fewer than {least} of "
        f"{len(labels)} examples: take a larger alpha, fewer workers, or a smaller `least`."
    )


def label_shards(
    labels: Sequence[int] | np.ndarray, num_workers: int, labels_per_worker: int, seed: int
) -> tuple[np.ndarray, ...]:
    """Gives every worker the examples of a few labels only.

    The labels are dealt out in turn, in a random order; the workers that have one share its
    examples equally.

    Args:
      labels: `[num_examples]`, integers from 0.
      num_workers: M ≥ 1.
      labels_per_worker: At least 1, at most as many as there are; all labels must find a worker.
      seed: Integer ≥ 0.

    Returns:
      For each worker the ascending indices of its examples; each example is one worker's.

    Raises:
      ValueError: For numbers out of range.

    Source: McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized
    Data*, AISTATS 2017, section 3, whose shards are of sorted labels.

    Example:
      >>> import numpy as np
      >>> from dcasgd_jax import sim
      >>> labels = np.arange(1000) % 10
      >>> shards = sim.label_shards(labels, 5, labels_per_worker=2, seed=0)
      >>> [len(set(labels[shard].tolist())) for shard in shards]
      [2, 2, 2, 2, 2]
    """
    labels = _labels(labels)
    num_workers = checks.check_count("num_workers", num_workers)
    each = checks.check_count("labels_per_worker", labels_per_worker)
    checks.check_count("seed", seed, least=0)
    there = np.unique(labels)
    if not len(there) / num_workers <= each <= len(there):
        raise ValueError(
            f"labels_per_worker is {each}: with {num_workers} workers and {len(there)} labels it "
            f"must be at least {-(-len(there) // num_workers)} and at most {len(there)}."
        )
    generator = np.random.default_rng(seed)
    deck = np.tile(generator.permutation(there), -(-num_workers * each // len(there)))
    hands = deck[: num_workers * each].reshape(num_workers, each)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
    for label in there:
        owners = np.flatnonzero((hands == label).any(axis=1))
        of_label = generator.permutation(np.flatnonzero(labels == label))
        for worker, part in zip(owners, np.array_split(of_label, len(owners)), strict=True):
            parts[worker].append(part)
    return tuple(np.sort(np.concatenate(of_worker)) for of_worker in parts)


def label_counts(
    labels: Sequence[int] | np.ndarray, shards: Sequence[Sequence[int] | np.ndarray]
) -> np.ndarray:
    """How many examples of each label every worker has.

    Args:
      labels: `[num_examples]`, integers from 0.
      shards: For each worker the indices of its examples.

    Returns:
      Int64 `[num_workers, largest label + 1]`; `pandas.DataFrame(...)` shows it as a table.

    Example:
      >>> from dcasgd_jax import sim
      >>> sim.label_counts([0, 1, 1, 2], [[0, 1], [2, 3]]).tolist()
      [[1, 1, 0], [0, 1, 1]]
    """
    labels = _labels(labels)
    indices = [_indices(f"shards[{m}]", shard) for m, shard in enumerate(shards)]
    size = int(labels.max(initial=-1)) + 1
    return np.array([np.bincount(labels[shard], minlength=size) for shard in indices])


def _labels(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    found = np.asarray(labels)
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"labels must be integers [num_examples], got {found.dtype} {list(found.shape)}."
        )
    if found.min() < 0:
        raise ValueError(f"labels must count from 0, got {found.min()}.")
    return found


def _indices(name: str, shard: Sequence[int] | np.ndarray) -> np.ndarray:
    found = np.asarray(shard)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or found.min(initial=0) < 0:
        raise ValueError(
            f"{name} must be indices of examples, got {found.dtype} {list(found.shape)}."
        )
    return found
