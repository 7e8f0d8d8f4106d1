"""Links between regions: how long what is sent takes, and who shares the bandwidth."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules import tables

PerLink = float | Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Links:
    r"""Regions, and links between them with latency and bandwidth, for `make_schedule(links=)`.

    A gradient goes from its worker's region to the server's, parameters go back. All that travels
    in one direction of one link at a time shares its bandwidth equally, so that one of n transfers
    moves at bandwidth/n; the last byte then takes the latency:

    .. math:: \text{seconds} = \text{bytes} / \text{bandwidth} + \text{latency}
        \quad\text{if it travels alone.}

    A push that is lost has travelled all the same. What a crashed or stopped worker sends leaves
    the link at once; a second delivery of a push takes no bandwidth.

    Args:
      region: The region of each worker, `[num_workers]`, integers from 0.
      latency: Seconds ≥ 0 from a region (row) to another (column), `[num_regions, num_regions]`, or
        one number for all. The diagonal is for workers in the server's own region.
      bandwidth: Bytes per second > 0 of each direction, in the same way; may be `inf`.
      push_bytes: Size of a gradient as it travels, ≥ 0.
      pull_bytes: Size of the parameters, ≥ 0.
      server_region: Where the server is.

    Raises:
      ValueError: For numbers out of range or tables of another shape; names the link.

    Example:
      Two pushes that travel at once take twice as long:

      >>> from dcasgd_jax import sim
      >>> links = sim.Links([1, 1], latency=0.5, bandwidth=100.0, push_bytes=200.0)
      >>> schedule = sim.make_schedule(sim.ConstantTime(), 2, 3, seed=0, links=links)
      >>> schedule.time.tolist()  # pull 0.5, compute 1, push 4 instead of 2, and 0.5
      [6.0, 6.0, 12.0]
    """

    region: Sequence[int]
    latency: PerLink = 0.0
    bandwidth: PerLink = math.inf
    push_bytes: float = 0.0
    pull_bytes: float = 0.0
    server_region: int = 0

    def __post_init__(self):
        checks.check_fields(self, server_region=0)
        for field in ("push_bytes", "pull_bytes"):
            value = getattr(self, field)
            checks.check_kind(f"Links.{field}", value, checks.is_number, "a number of bytes")
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"Links.{field} must be >= 0 and finite, got {value}.")
        is_some = lambda value: np.ndim(value) == 1
        checks.check_kind("Links.region", self.region, is_some, "one region per worker")
        region = tuple(
            checks.check_count(f"Links.region[{m}]", r, least=0) for m, r in enumerate(self.region)
        )
        object.__setattr__(self, "region", region)
        needed = max((*region, self.server_region)) + 1
        for field in ("latency", "bandwidth"):
            object.__setattr__(self, field, _table(f"Links.{field}", getattr(self, field), needed))
        if len(self.bandwidth) != self.num_regions:  # type: ignore[arg-type]
            raise ValueError(
                f"Links.latency is of {self.num_regions} regions, but bandwidth is of another "
                f"number, {len(self.bandwidth)}."  # type: ignore[arg-type]
            )
        _check_links("Links.latency", self.latency, lambda s: s >= 0 and math.isfinite(s))
        _check_links("Links.bandwidth", self.bandwidth, lambda rate: rate > 0)

    @classmethod
    def from_csv(
        cls,
        region: Sequence[int],
        latency: str | os.PathLike,
        bandwidth: str | os.PathLike,
        **settings: Any,
    ) -> "Links":
        """Reads the two tables, one row per region sent from, one column per region sent to.

        Args:
          region: As of `Links`.
          latency: The file with seconds, header optional.
          bandwidth: The file with bytes per second, header optional.
          **settings: The others of `Links`.

        Raises:
          ValueError: If a file is no such table; names the file.
        """
        latencies, bandwidths = (tables.read_table(path).values for path in (latency, bandwidth))
        for path, values in ((latency, latencies), (bandwidth, bandwidths)):
            if values.shape[0] != values.shape[1]:
                raise ValueError(
                    f"{path} has {values.shape[0]} rows and {values.shape[1]} columns; a table of "
                    "links has one of each per region."
                )
        try:
            return cls(region, latencies, bandwidths, **settings)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{latency}, {bandwidth}: {error}") from None

    @property
    def num_regions(self) -> int:
        """That the tables are of."""
        return len(self.latency)  # type: ignore[arg-type]

    def check(self, num_workers: int) -> None:
        """Raises ValueError unless each worker has a region."""
        if len(self.region) != num_workers:
            raise ValueError(
                f"Links.region has {len(self.region)} values, but there are {num_workers} workers."
            )

    def push_link(self, region: int) -> tuple[float, float]:
        """Seconds that a push from there takes its link when alone, and the latency."""
        return self._link(region, self.server_region, self.push_bytes)

    def pull_link(self, region: int) -> tuple[float, float]:
        """Seconds that a pull from there takes its link when alone, and the latency."""
        return self._link(self.server_region, region, self.pull_bytes)

    def _link(self, start: int, stop: int, size: float) -> tuple[float, float]:
        latency, bandwidth = self.latency[start][stop], self.bandwidth[start][stop]  # type: ignore[index]
        return size / bandwidth, latency


def _table(name: str, given: PerLink, least: int) -> tuple[tuple[float, ...], ...]:
    """A table [num_regions, num_regions] with `least` regions, of one number or a table."""
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or a table of them, got {given!r}.") from None
    if values.ndim == 0:
        values = np.full((least, least), values)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(
            f"{name} must be a number or a table [num_regions, num_regions], got shape "
            f"{values.shape}."
        )
    if len(values) < least:
        raise ValueError(
            f"{name} is of {len(values)} regions, but there is a region {least - 1}: regions count "
            "from 0."
        )
    return tuple(map(tuple, values.tolist()))


def _check_links(name: str, table: Any, is_right: Any) -> None:
    for start, row in enumerate(table):
        for stop, value in enumerate(row):
            if not is_right(value):
                raise ValueError(f"{name} from region {start} to region {stop} is {value:g}.")
