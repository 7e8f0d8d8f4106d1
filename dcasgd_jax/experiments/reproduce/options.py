"""The options of `dcasgd-jax reproduce cifar10`."""

import argparse
import math
import pathlib

from dcasgd_jax.experiments import methods
from dcasgd_jax.experiments import settings as common
from dcasgd_jax.experiments.options import integer_from
from dcasgd_jax.experiments.reproduce import network, paper, settings

DESCRIPTION = f"""\
Trains on CIFAR-10 as the paper does: ResNet-20, {paper.BATCH_SIZE} images per worker and gradient,
{paper.EPOCHS} epochs, a learning rate of {paper.LEARNING_RATE} that falls to a tenth after one half
and after three quarters of them, no momentum and no weight decay. Every finished run is one line
of results.jsonl in the folder --out. Call it again after an interruption, or with more methods,
workers, learning rates or seeds: it goes on, and skips what is there."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of `reproduce cifar10`."""
    parser.description = DESCRIPTION
    parser.epilog = _epilog()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_data(parser)
    _add_runs(parser)
    _add_protocol(parser)
    out = parser.add_argument_group("results")
    out.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("reproduce-cifar10"),
        metavar="DIR",
        help="folder for results.jsonl, results.png and checkpoints; default %(default)s",
    )
    out.add_argument(
        "--report-only",
        action="store_true",
        help="only print the table and draw the picture of what is in --out",
    )
    out.add_argument(
        "--checkpoint-every",
        type=integer_from(1),
        default=1,
        metavar="N",
        help="epochs between two checkpoints of a run, default %(default)s",
    )
    out.add_argument(
        "--eval-batch-size",
        type=integer_from(1),
        metavar="N",
        help="images evaluated at once; lower it if the device runs out of memory",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-dir",
        type=pathlib.Path,
        metavar="DIR",
        help="folder with train-*.parquet and test-*.parquet, or cifar-10-binary.tar.gz; default: "
        "download from the Hugging Face hub",
    )
    group.add_argument(
        "--cache-dir",
        type=pathlib.Path,
        metavar="DIR",
        help="keep decoded images and compiled programs there, for the next call",
    )
    for option, what in (("--subset", "training"), ("--test-subset", "test")):
        group.add_argument(
            option,
            type=integer_from(1),
            metavar="N",
            help=f"use only the first N {what} images",
        )


def _add_runs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("runs")
    group.add_argument(
        "--workers",
        type=integer_from(1),
        nargs="+",
        default=[4, 8],
        metavar="M",
        help="numbers of workers; sgd always has one; default 4 8",
    )
    group.add_argument(
        "--methods",
        nargs="+",
        choices=list(methods.METHODS),
        default=list(methods.METHODS),
        metavar="METHOD",
        help="which methods, in this order; default: all six, listed below",
    )
    group.add_argument(
        "--seeds",
        type=integer_from(1),
        default=1,
        metavar="N",
        help="run seeds 0 to N-1; default 1",
    )
    for option, what, default in (
        ("--learning-rates", "learning rates", f"{paper.LEARNING_RATE:g}"),
        ("--lambda0", "lambda0", " ".join(f"{k}={v:g}" for k, v in paper.LAMBDA0.items())),
    ):
        group.add_argument(
            option,
            nargs="+",
            default=[],
            metavar="[METHOD=]VALUE[,VALUE...]",
            help=f"{what} of one method or of all that have one; each value makes a run; default "
            f"{default}",
        )
    group.add_argument(
        "--max-pull",
        type=_number_from_zero,
        default=1.0,
        metavar="VALUE",
        help="cap of dcasgd-capped, default %(default)s",
    )


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    default = settings.Setting()
    group = parser.add_argument_group(
        "protocol", "the same for all runs in one folder; other values need another --out"
    )
    group.add_argument(
        "--epochs",
        type=integer_from(1),
        default=default.epochs,
        metavar="N",
        help="the steps of the learning rate move with it; default %(default)s",
    )
    group.add_argument(
        "--batch-size",
        type=integer_from(1),
        default=default.batch_size,
        metavar="N",
        help="images per worker and gradient, default %(default)s",
    )
    group.add_argument("--law", choices=list(common.LAWS), default="gamma", metavar="LAW",
                       help="how long a gradient takes a worker, one of "
                       f"{', '.join(common.LAWS)}; default %(default)s")  # fmt: skip
    group.add_argument(
        "--law-param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the law, repeatable",
    )
    for name, number in (("momentum", default.momentum), ("weight-decay", default.weight_decay)):
        group.add_argument(
            f"--{name}",
            type=_number_from_zero,
            default=number,
            metavar="VALUE",
            help="default %(default)g, as in the paper",
        )
    group.add_argument(
        "--batch-norm",
        choices=["per_worker", "server"],
        default=default.batch_norm,
        help="running statistics of each worker, averaged to evaluate, or those of the last push; "
        "default %(default)s",
    )
    group.add_argument(
        "--model",
        choices=list(network.MODELS),
        default=default.model,
        help=f"default %(default)s; tiny: {network.MODELS['tiny']}",
    )
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default=default.dtype,
        help="of the computation; parameters stay float32; default %(default)s",
    )
    group.add_argument(
        "--eval-every",
        type=integer_from(1),
        metavar="N",
        help="epochs between two evaluations; default: as few as take no more than about a tenth "
        "of the time",
    )


def _number_from_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number >= 0")
    return value


def _epilog() -> str:
    lines = ["methods:"]
    lines += [f"  {method.name:<15}{method.title}" for method in methods.METHODS.values()]
    lines += [
        "",
        "examples:",
        "  dcasgd-jax reproduce cifar10 --data-dir data --workers 8 --seeds 3",
        "  dcasgd-jax reproduce cifar10 --methods asgd dcasgd-capped --workers 8 \\",
        "      --learning-rates asgd=0.5,0.1 --lambda0 dcasgd-capped=100,300 --subset 10000",
    ]
    return "\n".join(lines)
