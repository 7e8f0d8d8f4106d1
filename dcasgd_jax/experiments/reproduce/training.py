"""One run of the protocol: trained, resumed if it was interrupted, and put into numbers."""

import contextlib
import datetime
import math
import pathlib
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from dcasgd_jax import sim
from dcasgd_jax.experiments import errors, methods, records
from dcasgd_jax.experiments.reproduce import clock, optimizers, settings

Progress = Callable[[int], None]

_PACKAGES = ("flax", "orbax-checkpoint")


class Workload(NamedTuple):
    """What all runs share."""

    setting: settings.Setting
    examples: dict[str, jax.Array]  # images and labels to train on, on the device
    eval_every: int  # epochs
    problem: Callable[[int], Any]  # of the seed
    checkpoint_every: int  # epochs


def train(
    workload: Workload, run: settings.Run, directory: pathlib.Path, progress: Progress
) -> dict[str, Any]:
    """Trains, from the checkpoint in `directory` on if there is one.

    Args:
      workload: What all runs share.
      run: What to train.
      directory: Of this run alone.
      progress: Called with the number of pushes done by this call.

    Returns:
      The line for the file of results, but for the settings.
    """
    setting = workload.setting
    num_images = len(workload.examples["labels"])
    budget = settings.budget(setting, run, num_images)
    num_updates = setting.epochs * budget.updates_per_epoch
    method = run.trained_by
    schedule = sim.make_schedule(
        setting.law, run.workers, num_updates, seed=run.seed, protocol=method.protocol
    )
    problem = workload.problem(run.seed)
    tx = optimizers.make_tx(method, num_updates, setting.momentum, setting.weight_decay)
    numbers = methods.Hyperparameters(run.learning_rate, run.lambda0)
    watch = clock.Clock(seconds_file(directory))
    done = 0

    def report(num_events: int) -> None:
        nonlocal done
        progress(num_events - done)
        done = num_events
        watch.save()

    epochs = [*range(workload.eval_every, setting.epochs, workload.eval_every), setting.epochs]
    with _explained(run):
        result = problem.simulate(
            tx,
            schedule,
            sim.Indexed(workload.examples, budget.sampler.rows(schedule)),
            key=jax.random.key(run.seed),
            opt_state=methods.init_opt_state(tx, problem.params, numbers),
            model_state_policy=setting.batch_norm,
            eval_versions=[epoch * budget.updates_per_epoch for epoch in epochs],
            metrics=["compensation_ratio"] if method.compensates else [],
            checkpoint=sim.Checkpoint(
                directory, every=workload.checkpoint_every * budget.pushes_per_epoch
            ),
            progress=report,
        )
    watch.save()
    curve = _curve(result, setting.batch_size * budget.pushes_per_epoch)
    return {
        "run": run._asdict(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
        **_speed(workload, problem, done, watch.seconds),
        "versions": records.versions() | {name: metadata.version(name) for name in _PACKAGES},
    }


def seconds_file(directory: pathlib.Path) -> pathlib.Path:
    """Where the time spent on the run of a directory is kept."""
    return directory.parent / f"{directory.name}.seconds.json"


@contextlib.contextmanager
def _explained(run: settings.Run) -> Iterator[None]:
    """Says what a user can do about it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise errors.UsageError(
            f"{run.name}: out of device memory; a smaller --batch-size, fewer --workers (the "
            "server keeps one copy of the parameters for each), --dtype bfloat16 or a smaller "
            f"--eval-batch-size needs less ({str(error).splitlines()[0]})"
        ) from error
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
    names = ("test_error", "test_loss", "train_loss", "batch_loss")
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


def _speed(workload: Workload, problem: Any, pushes: int, seconds: float) -> dict[str, Any]:
    """Of this process alone; the share is an estimate from the time that a gradient takes alone."""
    if not pushes:
        return {"gradients_per_second": None, "gradient_share": None}
    alone = clock.seconds_per_gradient(problem, workload.examples, workload.setting.batch_size)
    return {
        "gradients_per_second": pushes / seconds,
        "gradient_share": min(pushes * alone / seconds, 1.0),
    }
