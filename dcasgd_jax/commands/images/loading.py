"""From rows of a source to batches of pixels, decoded ahead by threads."""

import collections
import dataclasses
import os
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple, Self

import numpy as np

from dcasgd_jax import extras
from dcasgd_jax.commands.images import crops, decoding, sources


class ImageBatch(NamedTuple):
    """Images of one size and their classes, NumPy arrays; a tree for `loss_fn`."""

    images: np.ndarray  # [batch_size, size, size, 3], uint8
    labels: np.ndarray  # [batch_size], int32


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatches:
    """The batches that `rows` names, in order; iterate over it as often as needed.

    Batch k depends on `rows[k]`, `seed` and k alone, not on threads or on where the iteration
    began. At any time a few batches are in memory, whatever the size of the data set.

    An event that repeats an earlier batch takes none from an iterator, so a schedule with
    repeated pushes needs the rows of its other events only, as in the example.

    Args:
      source: Of the encoded images.
      rows: Integers [num_batches, batch_size] in [0, len(source)).
      training: Random crops and flips; otherwise the central crop.
      seed: Integer ≥ 0, of the random crops.
      size: Of a side of the crops, in pixels.
      first: Batch to begin with; those before it are not read.
      num_threads: That read and decode; None takes one per core.
      prefetch: Batches decoded ahead, at least 0.

    Raises:
      ValueError: For arguments out of range.
      UsageError: While iterating, for a file that is no image; names it.

    Example:
      >>> import numpy as np
      >>> from dcasgd_jax import sim
      >>> from dcasgd_jax.commands import images
      >>> from dcasgd_jax.schedules.sampling import ShardedEpochs
      >>> schedule = sim.make_schedule(sim.ExponentialTime(), 16, num_updates=1000, seed=0)
      >>> sampler = ShardedEpochs(1_281_167, batch_size=32, num_workers=16, seed=0)
      >>> rows = sampler.rows(schedule)[schedule.batch == np.arange(len(schedule))]
      >>> data = images.open_imagenet("~/data/imagenet")  # doctest: +SKIP
      >>> batches = images.ImageBatches(data.train, rows, training=True)  # doctest: +SKIP
      >>> resumed = batches.starting_at(500)  # doctest: +SKIP
    """

    source: sources.ImageSource
    rows: np.ndarray
    training: bool
    seed: int = 0
    size: int = 224
    first: int = 0
    num_threads: int | None = None
    prefetch: int = 2

    def __post_init__(self):
        extras.require_packages("PIL", extra="images")
        rows = np.asarray(self.rows)
        if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                "rows must be integers [num_batches, batch_size], got "
                f"{rows.dtype} {list(rows.shape)}."
            )
        object.__setattr__(self, "rows", rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.source):
            raise ValueError(
                f"rows go from {rows.min()} to {rows.max()}, but the source has "
                f"{len(self.source)} images."
            )
        least = {"seed": 0, "size": 1, "prefetch": 0, "num_threads": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}.")
        if not 0 <= self.first <= len(rows):
            raise ValueError(f"first must be a batch in [0, {len(rows)}], got {self.first}.")

    def __len__(self) -> int:
        """Batches still to come when the iteration begins."""
        return len(self.rows) - self.first

    def starting_at(self, batch: int) -> Self:
        """The same batches from number `batch` of `rows` on, for a run that is resumed."""
        return dataclasses.replace(self, first=batch)

    def __iter__(self) -> Iterator[ImageBatch]:
        with futures.ThreadPoolExecutor(self.num_threads or os.cpu_count() or 1) as pool:
            ahead: collections.deque[list[futures.Future]] = collections.deque()
            try:
                for batch in range(self.first, len(self.rows)):
                    ahead.append(self._submit(pool, batch))
                    if len(ahead) > self.prefetch:
                        yield self._collect(batch - len(ahead) + 1, ahead.popleft())
                while ahead:
                    yield self._collect(len(self.rows) - len(ahead), ahead.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, pool: futures.Executor, batch: int) -> list[futures.Future]:
        return [
            pool.submit(self._pixels, int(row), batch, position)
            for position, row in enumerate(self.rows[batch])
        ]

    def _pixels(self, row: int, batch: int, position: int) -> np.ndarray:
        with decoding.opened(self.source, row) as image:
            if not self.training:
                return crops.evaluation_crop(image, self.size)
            generator = np.random.default_rng([self.seed, batch, position])
            return crops.training_crop(image, self.size, generator)

    def _collect(self, batch: int, pixels: list[futures.Future]) -> ImageBatch:
        images = np.empty((len(pixels), self.size, self.size, 3), np.uint8)
        for position, future in enumerate(pixels):
            images[position] = future.result()
        return ImageBatch(images, self.source.labels[self.rows[batch]])
