"""Schedules of the worst case, and the guard against it."""

import dataclasses

import numpy as np

from dcasgd_jax import checks
from dcasgd_jax.schedules.schedule import Schedule


def held_back_schedule(delay: int, num_rounds: int = 1) -> Schedule:
    r"""An adversary lets one gradient wait while `delay` fresh ones are applied, again and again.

    Worker 0 computes at version 0; worker 1 makes `delay` updates with fresh gradients; then
    worker 0's is applied, and it reads again. On f(x) = x²/2 with learning rate α one round is

    .. math:: x \leftarrow ((1 - \alpha)^\tau - \alpha) \, x

    Once :math:`2 (1 - \alpha)^\tau \le \alpha` the stale step alone decides: a round divides
    :math:`|x|` by at most 2/α, so its progress, the drop of :math:`\log |x|`, is at most log(2/α)
    however long it is: a slow-down linear in τ. Before, the two terms may cancel by luck: with
    α = 0.1 and τ = 22 the progress of one round is 6.49, with τ = 29 it is 2.94 of at most 3.00.

    Args:
      delay: τ ≥ 1, updates that the gradient is held back for.
      num_rounds: ≥ 1.

    Returns:
      A schedule of two workers and `num_rounds * (delay + 1)` events.

    Raises:
      ValueError: For numbers out of range.

    Source: Alistarh, De Sa and Konstantinov, *The Convergence of Stochastic Gradient Descent in
    Asynchronous Shared Memory*, PODC 2018, the lower bound.

    Example:
      >>> from dcasgd_jax import sim
      >>> sim.held_back_schedule(3, num_rounds=2).staleness.tolist()
      [0, 0, 0, 3, 0, 0, 0, 3]
    """
    delay = checks.check_count("delay", delay)
    num_rounds = checks.check_count("num_rounds", num_rounds)
    version = np.arange(num_rounds * (delay + 1))
    held_back = version % (delay + 1) == delay
    read_version = np.where(held_back, version - delay, version)
    return Schedule(
        worker=np.where(held_back, 0, 1),
        read_version=read_version,
        time=version + 1.0,
        num_workers=2,
        read_time=read_version * 1.0,
    )


def guard_epochs(schedule: Schedule, epoch_length: int) -> Schedule:
    r"""Drops every push whose gradient was taken in an earlier epoch than it arrives in.

    .. math:: applied_k \wedge \lfloor version_k / n \rfloor = \lfloor read\_version_k / n \rfloor

    An epoch lasts n updates, so that a learning rate which is halved from epoch to epoch is the
    optax schedule `lambda count: alpha * 0.5 ** (count // epoch_length)`. Dropped pushes make no
    version: later ones are renumbered, and every worker still reads right when it did.

    The guard helps where delays are comparable to the epoch or longer; in much longer epochs it
    drops next to nothing. A learning rate is applied when a push arrives, with the count of then:
    under a falling rate a gradient that was held back is applied at the small one, so the unguarded
    run is milder than the paper's adversary, whose step keeps the rate of when it was computed.

    Args:
      schedule: Every applied push is one update.
      epoch_length: n ≥ 1, updates.

    Returns:
      The schedule with the same pushes at the same times, some of them not applied.

    Raises:
      ValueError: If an update averages several pushes, or for a length < 1.

    Source: the epochs of FullSGD in Alistarh, De Sa and Konstantinov, PODC 2018. Theirs count
    iterations that threads have begun, ours count updates.

    Example:
      >>> from dcasgd_jax import sim
      >>> guarded = sim.guard_epochs(sim.held_back_schedule(3, num_rounds=2), epoch_length=3)
      >>> guarded.applied.tolist(), guarded.version.tolist()
      ([True, True, True, False, True, True, True, False], [0, 1, 2, 3, 3, 4, 5, 6])
    """
    epoch_length = checks.check_count("epoch_length", epoch_length)
    if (schedule.num_pushes > 1).any():
        raise ValueError(
            "guard_epochs needs a schedule in which every applied push is one update, but update "
            f"{schedule.version[np.argmax(schedule.num_pushes > 1)]} averages several."
        )
    kept = [0]  # updates kept among the first v of the given schedule
    applied, version, read_version = [], [], []
    given = (schedule.applied.tolist(), schedule.read_version.tolist())
    for was_applied, read in zip(*given, strict=True):
        version.append(kept[-1])
        read_version.append(kept[read])
        applied.append(was_applied and kept[-1] // epoch_length == kept[read] // epoch_length)
        if was_applied:
            kept.append(kept[-1] + applied[-1])
    return dataclasses.replace(
        schedule,
        applied=np.array(applied),
        version=np.array(version),
        read_version=np.array(read_version),
        update_time=None,  # every update is made at its push
    )
