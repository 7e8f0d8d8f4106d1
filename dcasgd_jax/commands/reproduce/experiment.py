"""`dcasgd-jax reproduce`: all runs that are missing, then the table and the picture."""

import argparse
import functools
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax

from dcasgd_jax import extras
from dcasgd_jax.commands import errors, ledger, study, terminal
from dcasgd_jax.commands.reproduce import (
    cifar10,
    imagenet,
    jobs,
    pictures,
    results,
    settings,
    table,
    training,
)

if TYPE_CHECKING:
    from rich.console import Console

PICTURE, CHECKPOINTS = "results.png", "checkpoints"
DATA_SETS = {"cifar10": cifar10, "imagenet": imagenet}
"""Name -> module with `load`, `take`, `checksum`, `make_feed` and `problem_maker`."""


def run(arguments: argparse.Namespace) -> None:
    """Runs what is missing in the folder `--out` and reports what is there.

    Raises:
      UsageError: If the options are wrong, a package or the data are missing, or the folder holds
        runs of other settings; before any training.
    """
    job = jobs.make_job(arguments)
    extras.require_packages("matplotlib", "rich", "pandas", extra="reproduce")
    console = terminal.make_console()
    if not job.report_only:
        extras.require_packages("flax", "sklearn", extra="reproduce")
        _run_missing(job, console)
    lines = results.read(job.out)
    if not lines:
        raise errors.UsageError(f"{job.out / ledger.RESULTS} holds no finished run")
    for line in lines:
        if (there := line["settings"]["experiment"]) != job.setting.experiment:
            raise errors.UsageError(
                f"{job.out / ledger.RESULTS} holds runs of {there}: choose another --out"
            )
    terminal.print_table(console, table.title(lines), table.make_table(console, lines))
    terminal.print_text(console, table.explanation(lines))
    pictures.save(job.out / PICTURE, lines)
    saved = f"Saved {job.out / ledger.RESULTS} and {PICTURE} beside it."
    terminal.print_text(console, saved, wrap=False)


def _run_missing(job: jobs.Job, console: "Console") -> None:
    data_set = DATA_SETS[job.setting.experiment]
    data = limit(
        data_set,
        data_set.load(job),
        (job.subset, job.test_subset),
        max(run.workers for run in job.runs),
        job.setting.batch_size,
    )
    num_images = len(data.train.labels)
    described = job.setting.describe(data, data_set.checksum(data))
    _keep_compiled(job.cache_dir)
    workload = training.Workload(
        setting=job.setting,
        feed=data_set.make_feed(job.setting, data),
        eval_every=described["eval_every"],
        problem=data_set.problem_maker(job.setting, data, job.eval_batch_size),
        checkpoint_every=job.checkpoint_every,
    )
    for note in _notes(job, num_images):
        terminal.print_text(console, note)
    study.run(make_study(job, workload, described, num_images), job.out, console)


def make_study(
    job: jobs.Job, workload: training.Workload, described: dict[str, Any], num_images: int
) -> study.Study:
    """The runs of a job as tasks of the engine: nothing is tuned, one seed after the other."""
    tasks = [
        study.Task(
            place={"method": run.method, "workers": run.workers},
            tried=[run.numbers],
            train=functools.partial(_train, workload, job.out, run, described),
            pushes=_num_pushes(job.setting, run, num_images),
        )
        for run in job.runs
    ]
    return study.Study(
        program=results.PROGRAM,
        settings=described,
        tasks=tasks,
        seeds=range(job.seeds),
        loss_of=lambda outcome: outcome["final"]["train_loss"],
        check=results.check,
        tell=_sentence,
        seeds_first=True,
    )


def _train(
    workload: training.Workload,
    out: pathlib.Path,
    first: settings.Run,
    described: dict[str, Any],
    members: Sequence[study.Member],
    progress: study.Progress,
) -> Iterator[study.Outcome]:
    """Each run in its own folder of checkpoints, which goes when its line is in the results."""
    for member in members:
        run = first._replace(seed=member.seed)
        directory = out / CHECKPOINTS / run.name
        directory.parent.mkdir(exist_ok=True)
        method = workload.setting.method_of(run)
        yield training.train(workload, run, method, directory, progress) | {"settings": described}
        shutil.rmtree(directory, ignore_errors=True)
        training.seconds_file(directory).unlink(missing_ok=True)


def _keep_compiled(cache_dir: pathlib.Path | None) -> None:
    """Spares the next call the compilation, unless the user has said where to keep programs."""
    if cache_dir is not None and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir.expanduser() / "compiled"))


def limit(
    data_set: Any, data: Any, counts: tuple[int | None, int | None], workers: int, batch_size: int
) -> Any:
    """The images, of which `--subset` and `--test-subset` take the first.

    Raises:
      UsageError: If there are fewer, or too few for a batch for each of so many workers.
    """
    splits = []
    for option, count, split in zip(("--subset", "--test-subset"), counts, data, strict=True):
        there = len(split.labels)
        if count is not None and count > there:
            raise errors.UsageError(f"{option} {count}: the data has {there} such images")
        splits.append(data_set.take(split, count))
    data = type(data)(*splits)
    needed = workers * batch_size
    if len(data.train.labels) < needed:
        raise errors.UsageError(
            f"{len(data.train.labels)} training images are no batch of {batch_size} for each "
            f"worker: use --subset {needed} or more, fewer --workers or a smaller --batch-size"
        )
    return data


def _num_pushes(setting: settings.Setting, run: settings.Run, num_images: int) -> int:
    return (
        setting.epochs
        * settings.budget(setting, run, run.trained_by.protocol, num_images).pushes_per_epoch
    )


def _notes(job: jobs.Job, num_images: int) -> list[str]:
    """What a small subset does to an epoch."""
    notes = []
    for workers in sorted({run.workers for run in job.runs}):
        run = next(run for run in job.runs if run.workers == workers)
        pushes = settings.budget(
            job.setting, run, run.trained_by.protocol, num_images
        ).pushes_per_epoch
        used = pushes * job.setting.batch_size
        if used < 0.95 * num_images:
            notes.append(
                f"Note: with {workers} workers an epoch is {used} of the {num_images} images, what "
                f"fills batches of {job.setting.batch_size} for all; another epoch has others."
            )
    least = round(1 / (1 - job.setting.paper.decay_at[-1]))
    if job.setting.epochs < least:
        notes.append(
            f"Note: with fewer than {least} --epochs the learning rate falls within an epoch, not "
            "after."
        )
    return notes


def _sentence(line: results.Line) -> str:
    """One line per finished run."""
    name = results.run_of(line).name
    error = line["final"]["test_error"]
    parts = ["diverged"] if line["diverged"] else []
    parts += [] if error is None else [f"test error {100 * error:.2f} %"]
    sentence = f"{name}: {', '.join(parts)}, {line['seconds']:.0f} s"
    if line["gradients_per_second"] is not None:
        sentence += f", {line['gradients_per_second']:.3g} gradients/s"
    return sentence
