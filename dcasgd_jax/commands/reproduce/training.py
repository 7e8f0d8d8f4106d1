"""One run of the protocol: trained, resumed if it was interrupted, and put into numbers."""

import contextlib
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from dcasgd_jax import sim
from dcasgd_jax.commands import errors, methods, records
from dcasgd_jax.commands.reproduce import clock, settings

Progress = Callable[[int], None]
_NUMBERS = ("test_error", "test_loss", "train_loss", "batch_loss")


class Feed(NamedTuple):
    """Where the batches of a run come from."""

    num_images: int
    batches: Callable[[sim.Schedule, sim.ShardedEpochs], Any]  # as `sim.simulate` takes them
    engine: Any = None  # as `sim.simulate` takes it


class Workload(NamedTuple):
    """What all runs share."""

    setting: settings.Setting
    feed: Feed
    eval_every: int  # epochs
    problem: Callable[[int], Any]  # of the seed
    checkpoint_every: float  # epochs


def train(
    workload: Workload,
    run: settings.Run,
    method: methods.Method,
    directory: pathlib.Path,
    progress: Progress,
) -> dict[str, Any]:
    """Trains, from the checkpoint in `directory` on if there is one.

    Args:
      workload: What all runs share.
      run: What to train.
      method: How.
      directory: Of this run alone.
      progress: Called with the number of pushes done by this call.

    Returns:
      The line for the file of results, but for the run and the settings.
    """
    setting, feed = workload.setting, workload.feed
    budget = settings.budget(setting, run, method.protocol, feed.num_images)
    num_updates = setting.epochs * budget.updates_per_epoch
    schedule = sim.make_schedule(
        setting.law, run.workers, num_updates, seed=run.seed, protocol=method.protocol
    )
    problem = workload.problem(run.seed)
    tx = methods.make_tx(method, num_updates, setting.paper.decay_at, 0.0, setting.weight_decay)
    numbers = methods.Hyperparameters(run.learning_rate, run.lambda0)
    watch = clock.Clock(seconds_file(directory))
    done = 0

    def report(num_events: int) -> None:
        nonlocal done
        progress(num_events - done)
        done = num_events
        watch.save()

    epochs = [*range(workload.eval_every, setting.epochs, workload.eval_every), setting.epochs]
    with _explained(run, setting):
        result = sim.simulate(
            problem._replace(model_state_policy=setting.batch_norm),
            sim.Server(
                tx,
                opt_state=methods.init_opt_state(tx, problem.params, numbers),
                send=method.send,
            ),
            schedule,
            feed.batches(schedule, budget.sampler),
            key=jax.random.key(run.seed),
            engine=feed.engine,
            recording=sim.Recording(
                metrics=["compensation_ratio"] if method.compensates else [],
                eval_versions=[epoch * budget.updates_per_epoch for epoch in epochs],
            ),
            checkpoint=sim.Checkpoint(
                directory,
                every=max(round(workload.checkpoint_every * budget.pushes_per_epoch), 1),
            ),
            progress=report,
        )
    watch.save()
    curve = _curve(result, setting.batch_size * budget.pushes_per_epoch)
    return {
        "date": records.now(),
        "diverged": _has_diverged(result, curve),
        "final": _final(curve, setting.epochs),
        "curve": curve,
        "pushes": len(schedule),
        "updates": num_updates,
        "pushes_per_epoch": budget.pushes_per_epoch,
        "simulated_seconds": float(schedule.time[-1]),
        "mean_staleness": float(schedule.staleness.mean()),
        "compensation_ratio": _ratios(result.trace),
        "non_finite": None if result.non_finite is None else result.non_finite._asdict(),
        "seconds": watch.total,
        "gradients_per_second": done / watch.seconds if done else None,  # of this process alone
        "versions": records.versions() | {"flax": metadata.version("flax")},
    }


def seconds_file(directory: pathlib.Path) -> pathlib.Path:
    """Where the time spent on the run of a directory is kept."""
    return directory.parent / f"{directory.name}.seconds.json"


@contextlib.contextmanager
def _explained(run: settings.Run, setting: settings.Setting) -> Iterator[None]:
    """Says what a user can do about it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # What went wrong while the compiled program waited for images.
        if of_user := re.search(r"UsageError: (.*)", str(error)):
            raise errors.UsageError(of_user[1]) from error
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise errors.UsageError(
            f"{run.name}: out of device memory; a smaller --batch-size, "
            f"{'a smaller --image-size, ' if setting.image_size else ''}fewer --workers (the "
            "server keeps one copy of the parameters for each), --dtype bfloat16 or a smaller "
            f"--eval-batch-size needs less ({str(error).splitlines()[0]})"
        ) from error
    except BlockingIOError as error:  # another process trains the same run
        raise errors.UsageError(str(error)) from error
    except ValueError as error:
        if "holds a checkpoint of another run" not in str(error):
            raise
        raise errors.UsageError(str(error)) from error


def _curve(result: sim.SimResult, images_per_epoch: int) -> dict[str, list]:
    """What was measured at each evaluation, and the mean loss of the batches since the last."""
    if result.evaluations is None:
        return {"epoch": []}
    version, samples, seconds, values = result.evaluations
    stops = np.searchsorted(result.trace.samples, samples, side="right")
    losses = [
        float(np.mean(part)) if len(part) else math.nan
        for part in np.split(np.asarray(result.losses, np.float64), stops)[: len(stops)]
    ]
    return {
        "version": version.tolist(),
        "epoch": (samples / images_per_epoch).tolist(),
        "samples": samples.tolist(),
        "simulated_seconds": seconds.tolist(),
        **{name: np.asarray(column, np.float64).tolist() for name, column in values.items()},
        "batch_loss": losses,
    }


def _final(curve: dict[str, list], epochs: int) -> dict[str, float | None]:
    """The last evaluation, if it is at the end."""
    names = [*_NUMBERS, *(name for name in curve if name == "test_top5_error")]
    if not curve["epoch"] or curve["epoch"][-1] < epochs:
        return dict.fromkeys(names)
    return {name: curve[name][-1] for name in names}


def _has_diverged(result: sim.SimResult, curve: dict[str, list]) -> bool:
    """Whether the run was given up or ended with a loss that is not finite."""
    last = [result.losses[-1], *(curve["train_loss"][-1:] if curve["epoch"] else [])]
    return not np.isfinite(last).all()


def _ratios(trace: sim.Trace) -> dict[str, float] | None:
    """Of |compensation| to |gradient|; a run that diverged ends in NaN, which does not count."""
    if trace.compensation_ratio is None:
        return None
    measured = trace.compensation_ratio[~np.isnan(trace.compensation_ratio)]
    if not len(measured):
        return None
    return {"median": float(np.median(measured)), "max": float(measured.max())}
