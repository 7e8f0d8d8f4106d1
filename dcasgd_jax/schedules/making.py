"""Makes schedules: draws times from laws and plays a protocol with them, on the host."""

from collections.abc import Sequence

from dcasgd_jax import checks
from dcasgd_jax.schedules import laws, protocols
from dcasgd_jax.schedules.cluster import Cluster
from dcasgd_jax.schedules.links import Links
from dcasgd_jax.schedules.schedule import Schedule


def make_schedule(
    law: laws.WorkerTimeLaw,
    num_workers: int,
    num_updates: int,
    *,
    seed: int,
    protocol: protocols.Protocol | None = None,
    upload: laws.WorkerTimeLaw | None = None,
    download: laws.WorkerTimeLaw | None = None,
    links: Links | None = None,
    faults: Sequence[object] = (),
) -> Schedule:
    """Draws compute times from a law and plays a protocol with them, on the host.

    A worker's cycle: it pulls (reads the server's version), the parameters travel down, it
    computes, the gradient travels up and arrives. At one instant faults come first, then pushes by
    worker index, each followed by the pulls that it allows; a time that the server waits ends last.

    Args:
      law: A worker-time law, such as `GammaTime(shape=100, mean=1.0)`.
      num_workers: M ≥ 1.
      num_updates: Server updates ≥ 1. Events (pushes) are as many, or more where an update is the
        mean of several pushes or pushes are dropped.
      seed: Integer ≥ 0. The same seed gives every protocol the same compute times.
      protocol: Who waits for whom, such as `Synchronous()`, or a `Protocol` of one's own. Default:
        `Asynchronous()`.
      upload: Law of the times that gradients travel. Default: none.
      download: Law of the times that parameters travel. Default: none.
      links: Regions, latencies and bandwidths that transfers share, instead of `upload` and
        `download`. Default: none.
      faults: What goes wrong: `Crash`, `Restart`, `LateJoin`, `SlowDown`, `LostPush`,
        `DuplicatedPush`, `NaNGradient`.

    Returns:
      The schedule; the same arguments always give the same one.

    Raises:
      TypeError: For an argument of another kind, such as a class instead of one of its values.
      ValueError: For numbers out of range, a law for another number of workers, faults that cannot
        be, or a run that no worker is left to finish.

    Example:
      >>> from dcasgd_jax import sim
      >>> schedule = sim.make_schedule(sim.GammaTime(100, 1.0), 8, 10_000, seed=0)
      >>> round(float(schedule.staleness.mean()))
      7
      >>> crash = sim.Crash(worker=3, time=10.0)
      >>> schedule = sim.make_schedule(sim.GammaTime(), 8, 1000, seed=0, faults=[crash])
      >>> bool(schedule.time[schedule.worker == 3].max() < 10)
      True
    """
    num_workers = checks.check_count("num_workers", num_workers)
    num_updates = checks.check_count("num_updates", num_updates)
    seed = checks.check_count("seed", seed, least=0)
    cluster = Cluster(
        law, num_workers, seed, upload=upload, download=download, links=links, faults=faults
    )
    protocol = protocols.Asynchronous() if protocol is None else protocol
    protocols.check_protocol(protocol)
    return protocol.schedule(cluster, num_updates)
