"""`dcasgd-jax train`: a real asynchronous run, with checkpoints, a log and a record."""

import argparse
import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcasgd_jax import extras, sim
from dcasgd_jax.commands import errors, kept, records, terminal
from dcasgd_jax.commands.train import options, problems, watching
from dcasgd_jax.typing import PyTree

RESULTS, SETTINGS, SCHEDULE, LOG = "train.json", "settings.json", "schedule.npz", "log.jsonl"
CHECKPOINTS, CACHE = "checkpoints", "cache"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    options.add_options(parser)


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Trains, prints what came of it and saves it in the folder `--out`.

    Raises:
      UsageError: If the options are wrong, a package or the data is missing, or `--out` cannot be
        written or holds another run, before any training; if the run was given up, after saving.
    """
    started = time.perf_counter()
    job = options.make_job(arguments)
    extras.require_packages("sklearn", "rich")
    extras.require_packages("ray", extra="ray")
    records.prepare_folder(job.out, RESULTS, SETTINGS, SCHEDULE, LOG)
    console = terminal.make_console()
    _check_settings(job)
    if _is_done(job):
        terminal.print_text(
            console,
            f"Already done: {job.out / RESULTS} is of these {job.num_updates} updates. Ask for "
            "more with --updates, or choose another --out.",
            wrap=False,
        )
        return
    _check_address(job)
    records.write_json(job.out / SETTINGS, job.describe())
    task = _make_task(job)
    terminal.print_text(
        console,
        f"Training {job.task} with {job.method}: {job.num_workers} workers, {job.num_updates} "
        f"updates, {job.protocol}. Ctrl-C saves; the same command goes on.",
    )
    before = _evaluate(task.problem, task.problem.params)
    trained = _train(job, task)
    after = _evaluate(task.problem, trained.result.params)
    trained.schedule.save(job.out / SCHEDULE)
    content = {
        **records.header("dcasgd-jax train", command, job.describe()),
        "before": before,
        "after": after,
        **_facts(trained),
        "wall_seconds": time.perf_counter() - started,
    }
    records.write_json(job.out / RESULTS, content)
    _print(console, content)
    terminal.print_text(
        console, f"Saved {job.out / RESULTS}, {SCHEDULE} and {LOG} beside it.", wrap=False
    )
    if trained.given_up is not None:
        raise errors.UsageError(str(trained.given_up))


def _check_address(job: options.Job) -> None:
    """Somebody answers there; asked before any data are read."""
    if job.address is not None:
        from dcasgd_jax.runtime.ray import cluster

        try:
            cluster.check_answers(job.address)
        except (ValueError, OSError) as error:
            raise errors.UsageError(str(error)) from None


def _check_settings(job: options.Job) -> None:
    """A folder belongs to one run; only how long it is may change."""
    path = job.out / SETTINGS
    if path.exists():
        saved = kept.read(path, "dcasgd-jax train", {})
        same = {"num_updates": None}
        kept.check_same(f"the run in {job.out} has", saved | same, job.describe() | same)


def _is_done(job: options.Job) -> bool:
    """Whether the folder holds the results of this run, up to its last update."""
    path = job.out / RESULTS
    if not path.exists():
        return False
    updates = kept.read(path, "dcasgd-jax train", {"num_updates": int})["num_updates"]
    if updates > job.num_updates:
        raise errors.UsageError(
            f"--updates {job.num_updates}: the run in {job.out} has {updates} already; ask for "
            "more, or choose another --out"
        )
    return updates == job.num_updates


def _make_task(job: options.Job) -> problems.Task:
    common = {"batch_size": job.batch_size, "seed": job.seed}
    if job.task == "digits":
        return problems.digits(**common)
    cache = job.out.absolute() / CACHE
    cache.mkdir(exist_ok=True)
    data_dir = None if job.data_dir is None else job.data_dir.expanduser().absolute()
    return problems.cifar(**common, data_dir=data_dir, cache_dir=cache, subset=job.subset)


def _evaluate(problem: sim.Problem, params: PyTree) -> dict[str, float]:
    evaluate: Any = problem.eval_fn
    return {name: float(value) for name, value in evaluate(params)._asdict().items()}


def _train(job: options.Job, task: problems.Task) -> Any:
    from dcasgd_jax.runtime import ray

    with watching.progress_bar(job.num_updates) as show, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The run was given up", RuntimeWarning)
        try:
            return ray.train(
                task.problem,
                options.make_tx(job),
                task.batches_fn,
                num_workers=job.num_workers,
                num_updates=job.num_updates,
                address=job.address,
                protocol=job.protocol,
                num_shards=job.num_shards,
                wire_dtype=job.wire_dtype,
                delays=job.delays,
                seed=job.seed,
                checkpoint=sim.Checkpoint(job.out / CHECKPOINTS, every=job.checkpoint_every),
                log=job.out / LOG,
                progress=show,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise errors.UsageError(str(error)) from error


def _facts(trained: Any) -> dict[str, Any]:
    """What is worth saving of a run."""
    applied = trained.schedule.applied
    staleness = trained.schedule.staleness[applied]
    return {
        "num_updates": trained.schedule.num_updates,
        "num_pushes": len(trained.schedule),
        "train_seconds": trained.seconds,
        "updates_per_second": trained.schedule.num_updates / trained.seconds,
        "mean_staleness": float(np.mean(staleness)),
        "max_staleness": int(np.max(staleness)),
        "counts": dataclasses.asdict(trained.counts),
        "given_up": None if trained.given_up is None else str(trained.given_up),
        "losses": [float(loss) for loss in trained.result.losses],
    }


def _print(console: Any, content: dict[str, Any]) -> None:
    before, after = content["before"], content["after"]
    terminal.print_text(
        console,
        f"{content['num_updates']} updates in {content['train_seconds']:.1f} s "
        f"({content['updates_per_second']:.1f}/s), staleness {content['mean_staleness']:.2f} "
        f"(max {content['max_staleness']}); train loss {before['train_loss']:.4f} -> "
        f"{after['train_loss']:.4f}, test error {100 * before['test_error']:.1f} -> "
        f"{100 * after['test_error']:.1f} %.",
    )
    unusual = {name: count for name, count in content["counts"].items() if count}
    if unusual:
        words = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in unusual.items())
        terminal.print_text(console, f"Also: {words}.")
