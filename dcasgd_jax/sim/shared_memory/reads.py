"""Which version of every block each gradient has read: the table of inconsistent reads."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ReadVersions:
    r"""Update t uses a gradient at a view whose block j is that of version `read_version[t, j]`.

    .. math:: x_{t+1} = x_t + tx(\nabla f(\hat x_t)), \quad
              \hat x_t[j] = x_{read\_version[t, j]}[j]

    Reads are inconsistent: no version need equal the view. Every event is one update of the whole
    memory at once. A row of equal numbers is a consistent read.

    Args:
      read_version: `[num_events, num_blocks]`, versions, each in `[0, t]`.
      worker: `[num_events]`, who updates; each ≥ 0. Default: worker 0 does everything.

    Raises:
      ValueError: If a read is impossible; names the first such event, and the block.

    Source: the view model of Recht et al., *Hogwild!*, NIPS 2011, and of Alistarh, De Sa and
    Konstantinov, *The Convergence of Stochastic Gradient Descent in Asynchronous Shared Memory*,
    PODC 2018.

    Example:
      >>> from dcasgd_jax import sim
      >>> reads = sim.ReadVersions([[0, 0], [0, 1], [2, 0]])
      >>> reads.staleness.tolist()
      [[0, 0], [1, 0], [0, 2]]
    """

    read_version: np.ndarray
    worker: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        read = _integers("read_version", self.read_version)
        if read.ndim != 2 or not read.size:
            raise ValueError(
                "ReadVersions.read_version must be [num_events, num_blocks] and not empty, got "
                f"shape {read.shape}."
            )
        worker = np.zeros(len(read)) if self.worker is None else self.worker
        worker = _integers("worker", worker)
        if worker.shape != (len(read),) or (worker < 0).any():
            raise ValueError(
                f"ReadVersions.worker must be one index >= 0 for each of the {len(read)} events, "
                f"got shape {worker.shape}."
            )
        for t, j in np.argwhere((read < 0) | (read > np.arange(len(read))[:, None]))[:1]:
            raise ValueError(
                f"Impossible reads: at event {t} block {j} is read at version {read[t, j]}, but "
                f"must be in [0, {t}]."
            )
        object.__setattr__(self, "read_version", read)
        object.__setattr__(self, "worker", worker)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.read_version)

    @property
    def num_blocks(self) -> int:
        """Blocks of the memory."""
        return self.read_version.shape[1]

    @property
    def staleness(self) -> np.ndarray:
        """Versions between the read of each block and the update; int32 [T, num_blocks]."""
        return np.arange(len(self), dtype=np.int32)[:, None] - self.read_version


def _integers(name: str, values) -> np.ndarray:
    """A read-only int32 copy of `values`, which must be integers."""
    given = np.asarray(values)
    array = given.astype(np.int32)
    if not np.array_equal(array, given):
        raise ValueError(f"ReadVersions.{name} must hold 32-bit integers.")
    array.setflags(write=False)
    return array
