"""All of CIFAR-10 on a CPU: how much of the gap in test error does each method close?"""

import argparse
import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cifar10_report as report

from dcasgd_jax import extras
from dcasgd_jax.commands import (
    catalogue,
    command_line,
    images,
    kept,
    ledger,
    methods,
    options,
    study,
    terminal,
    values,
)
from dcasgd_jax.commands.reproduce import cifar10, experiment, settings, training

PROGRAM = "cifar10.py"
PICTURE, CHECKPOINTS = "cifar10.png", "checkpoints"
PLAIN = ("sgd", "asgd", "rotated", "dcasgd-capped", "ssgd", "rows", "dcasgd-a", "dcasgd-c")
WITH_MOMENTUM = ("sgd", "asgd", "rotated", "dana-dc", "dana-zero", "dcasgd-capped")
NUM_CONFIGURATIONS = 12  # tried for every method: 12 rates, or 6 rates and 2 values of its λ0
LOWEST_RATE, HIGHEST_RATE = 0.0125, 1.6  # times 1 - momentum
LAMBDA0 = {
    "dcasgd-c": (30.0, 300.0),
    "dcasgd-a": (2.0, 20.0),
    "dcasgd-capped": (20.0, 200.0),
    "dana-dc": (2.0, 20.0),
    "rows": (1.0, 4.0),
    "rotated": (1.0, 4.0),
}
"""Tried for each method; a smaller one does next to nothing here, as the page of results says."""

_RUN: dict[str, kept.Kinds] = {
    "method": str, "workers": int, "seed": int, "momentum": kept.NUMBER_OR_NONE,
    "learning_rate": kept.NUMBER, "lambda0": kept.NUMBER_OR_NONE,
}  # fmt: skip
_ENDED: dict[str, kept.Kinds] = {
    "diverged": bool, "final": dict, "curve": dict, "mean_staleness": kept.NUMBER,
    "simulated_seconds": kept.NUMBER,
}  # fmt: skip


class Workload(NamedTuple):
    """Images and network, once with all epochs and once with those of tuning."""

    whole: training.Workload
    tuning: training.Workload
    checkpoints: pathlib.Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Trains a small convolutional network on all of CIFAR-10, as the paper trains ResNet-20: "
        "every method is tuned with equal effort by the train loss of short runs on a seed of its "
        "own, then run on fresh seeds; without and with momentum. What is finished is kept in "
        "--out, and a run that is interrupted goes on: call it again."
    )
    options.add(
        parser, "--data-dir",
        help="folder with train-*.parquet and test-*.parquet, or cifar-10-binary.tar.gz; default: "
        "download from the Hugging Face hub",
    )  # fmt: skip
    parser.add_argument(
        "--cache-dir", type=pathlib.Path, metavar="DIR", help="keep decoded images there"
    )
    several = {"nargs": "+", "type": values.integer_from(2)}
    options.add(parser, "--workers", **several, default=[8, 16, 4], help="numbers of workers")
    names = tuple(dict.fromkeys([*PLAIN, *WITH_MOMENTUM]))
    options.add_methods(parser, names, names)
    parser.add_argument(
        "--momentum", nargs="+", type=values.momentum, default=[0.0], metavar="MU",
        help="0 is none; default 0",
    )  # fmt: skip
    for name, default, what in (
        ("--epochs", 10, "of a run"), ("--tuning-epochs", 2, "of a run of tuning"),
    ):  # fmt: skip
        parser.add_argument(
            name, type=values.integer_from(1), default=default, metavar="N",
            help=f"{what}; default {default}",
        )  # fmt: skip
    options.add(parser, "--batch-size", default=128)
    for name in ("--subset", "--test-subset"):
        parser.add_argument(
            name, type=values.integer_from(1), metavar="N", help="use only the first N images"
        )
    options.add(parser, "--seeds", default=3)
    options.add(parser, "--out", default=pathlib.Path("cifar10-results"))
    options.add_report_only(parser)


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the tables and saves a picture.

    Raises:
      UsageError: If the options are wrong, a package or the data are missing, or `--out` cannot be
        written or holds results of other settings; before any training.
    """
    del command  # every option that matters is in the settings and the lines
    extras.require_packages("flax", "matplotlib", "rich", "pandas", "sklearn", extra="reproduce")
    console, out = terminal.make_console(), arguments.out
    if arguments.report_only:
        lines, _ = study.read_all(out, PROGRAM, check)
    else:
        study.run(make_study(arguments), out, console)
        # What other calls, of other workers or methods, have put there belongs to the table.
        lines, _ = study.read_all(out, PROGRAM, check)
    report.print_tables(console, lines)
    report.save_picture(out / PICTURE, lines)
    terminal.print_text(console, f"Saved {out / PICTURE}.", wrap=False)


def make_study(arguments: argparse.Namespace) -> study.Study:
    """Every method with every number of workers; sequential SGD once for all of them."""
    values.check_seeds(arguments.seeds)
    setting = settings.Setting(
        model="small", epochs=arguments.epochs, batch_size=arguments.batch_size
    )
    data = images.load_cifar10(arguments.data_dir, cache_dir=arguments.cache_dir)
    counts = arguments.subset, arguments.test_subset
    most = max(arguments.workers)
    data = experiment.limit(cifar10, data, counts, most, arguments.batch_size)
    workload = _make_workload(setting, arguments.tuning_epochs, data, arguments.out)
    described = setting.describe(data, cifar10.checksum(data))
    del described["momentum"]  # of a line
    momenta = [momentum or None for momentum in dict.fromkeys(arguments.momentum)]
    return study.Study(
        program=PROGRAM,
        settings=described | {"tuning_epochs": arguments.tuning_epochs},
        tasks=[
            _task(workload, len(data.train.labels), momentum, workers, name)
            for momentum in momenta
            for workers in [1, *dict.fromkeys(arguments.workers)]
            for name in (PLAIN if momentum is None else WITH_MOMENTUM)
            if name in arguments.methods and (name == "sgd") == (workers == 1)
        ],
        seeds=range(arguments.seeds),
        loss_of=_loss_of,
        check=check,
        tell=report.sentence,
        tuning_seeds=study.TUNING_SEEDS[:1],
    )


def _make_workload(
    setting: settings.Setting, tuning_epochs: int, data: Any, out: pathlib.Path
) -> Workload:
    feed = cifar10.make_feed(setting, data)
    problem: Callable[[int], Any] = functools.cache(cifar10.problem_maker(setting, data))

    def of(setting: settings.Setting, eval_every: int) -> training.Workload:
        return training.Workload(setting, feed, eval_every, problem, checkpoint_every=1.0)

    short = dataclasses.replace(setting, epochs=tuning_epochs)
    return Workload(
        of(setting, setting.epochs_between_evaluations(data)),
        of(short, tuning_epochs),
        out / CHECKPOINTS,
    )


def _task(
    workload: Workload, num_images: int, momentum: float | None, workers: int, name: str
) -> study.Task:
    setting = workload.whole.setting
    num_pushes = setting.epochs * (num_images // setting.batch_size)
    method = catalogue.methods_for(workers, num_pushes, momentum)[name]
    of_epochs = functools.partial(_train, workload.checkpoints, method, workers)
    return study.Task(
        place={"workers": workers, "momentum": momentum, "method": name},
        tried=configurations(name, momentum),
        train=functools.partial(of_epochs, workload.whole),
        tune=lambda members, progress: map(_ended, of_epochs(workload.tuning, members, progress)),
        pushes=num_pushes,
        programs=(workers, name, momentum),
    )


def configurations(name: str, momentum: float | None) -> list[methods.Hyperparameters]:
    """As many for every method, over the same range of rates."""
    numbers = LAMBDA0.get(name, (None,))
    count = NUM_CONFIGURATIONS // len(numbers)
    step = (HIGHEST_RATE / LOWEST_RATE) ** (1 / (count - 1))
    lowest = LOWEST_RATE * (1 - (momentum or 0.0))
    rates = [float(f"{lowest * step**i:.3g}") for i in range(count)]
    return [methods.Hyperparameters(rate, number) for rate in rates for number in numbers]


def _train(
    checkpoints: pathlib.Path,
    method: methods.Method,
    workers: int,
    workload: training.Workload,
    members: Sequence[study.Member],
    progress: study.Progress,
) -> Iterator[study.Outcome]:
    """One run after the other, each in a folder of checkpoints of its own."""
    for member in members:
        run = settings.Run(
            method.name, workers, *member.numbers, max_pull=method.max_pull, seed=member.seed
        )
        epochs = workload.setting.epochs
        directory = checkpoints / f"{run.name}-momentum{method.momentum or 0:g}-{epochs}"
        directory.parent.mkdir(exist_ok=True)
        yield training.train(workload, run, method, directory, progress)
        shutil.rmtree(directory, ignore_errors=True)
        training.seconds_file(directory).unlink(missing_ok=True)


def _ended(outcome: study.Outcome) -> study.Outcome:
    """All that is kept of a run of tuning."""
    return {name: outcome[name] for name in ("diverged", "final")}


def _loss_of(outcome: study.Outcome) -> float:
    loss = outcome["final"]["train_loss"]
    return math.nan if outcome["diverged"] or loss is None else loss


def check(line: ledger.Line) -> None:
    """Raises ValueError, in words, if a line is no run of this program."""
    kept.check_fields(line["run"], _RUN)
    kept.check_fields(line, _ENDED)
    kept.check_fields(line["final"], dict.fromkeys(report.NUMBERS, kept.NUMBER_OR_NONE))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
