"""The options of `dcasgd-jax reproduce`."""

import argparse
import dataclasses
import math
import pathlib

from dcasgd_jax.commands import methods
from dcasgd_jax.commands import settings as common
from dcasgd_jax.commands.options import integer_from
from dcasgd_jax.commands.reproduce import paper, settings, texts


def add_options(parser: argparse.ArgumentParser, experiment: str) -> None:
    """Adds every option of one experiment."""
    words, reported = texts.TEXTS[experiment], paper.ALL[experiment]
    parser.description = words.description
    parser.epilog = _epilog(words, reported)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_data(parser, words)
    _add_runs(parser, reported)
    _add_protocol(parser, words, reported)
    out = parser.add_argument_group("results")
    out.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(f"reproduce-{experiment}"),
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
        type=_number_above_zero,
        default=words.checkpoint_every,
        metavar="N",
        help="epochs between two checkpoints of a run, default %(default)g",
    )
    out.add_argument(
        "--eval-batch-size",
        type=integer_from(1),
        metavar="N",
        help="images evaluated at once; lower it if the device runs out of memory",
    )


def _add_data(parser: argparse.ArgumentParser, words: texts.Texts) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-dir",
        type=pathlib.Path,
        metavar="DIR",
        help=f"folder with {words.files}; default: download from the Hugging Face hub",
    )
    group.add_argument(
        "--cache-dir",
        type=pathlib.Path,
        metavar="DIR",
        help=f"keep {words.cached} and compiled programs there, for the next call",
    )
    for option, what in (("--subset", "training"), ("--test-subset", words.tested)):
        group.add_argument(
            option,
            type=integer_from(1),
            metavar="N",
            help=f"use only {words.subset} N {what} images",
        )


def _add_runs(parser: argparse.ArgumentParser, reported: paper.Paper) -> None:
    workers = " ".join(map(str, reported.workers))
    everything = reported.methods == tuple(methods.METHODS)
    shown = "all six, listed below" if everything else " ".join(reported.methods)
    group = parser.add_argument_group("runs")
    group.add_argument(
        "--workers",
        type=integer_from(1),
        nargs="+",
        default=list(reported.workers),
        metavar="M",
        help=f"numbers of workers; sgd always has one; default {workers}",
    )
    group.add_argument(
        "--methods",
        nargs="+",
        choices=list(methods.METHODS),
        default=list(reported.methods),
        metavar="METHOD",
        help=f"which methods, in this order; default: {shown}",
    )
    group.add_argument(
        "--seeds",
        type=integer_from(1),
        default=1,
        metavar="N",
        help="run seeds 0 to N-1; default 1",
    )
    for option, what, default in (
        ("--learning-rates", "learning rates", f"{reported.learning_rate:g}"),
        ("--lambda0", "lambda0", " ".join(f"{k}={v:g}" for k, v in reported.lambda0.items())),
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


def _add_protocol(
    parser: argparse.ArgumentParser, words: texts.Texts, reported: paper.Paper
) -> None:
    default = dataclasses.replace(
        settings.Setting(),
        model=next(iter(words.models)),
        epochs=reported.epochs,
        batch_size=reported.batch_size,
    )
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
            help="default %(default)g",
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
        choices=list(words.models),
        default=default.model,
        help=f"default %(default)s; tiny: {words.models['tiny']}",
    )
    for option, (number, what) in words.numbers.items():
        group.add_argument(
            option,
            type=integer_from(1),
            default=number,
            metavar="N",
            help=f"{what}; default %(default)s",
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


def _number_above_zero(text: str) -> float:
    if not (value := _number_from_zero(text)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number > 0")
    return value


def _epilog(words: texts.Texts, reported: paper.Paper) -> str:
    title = lambda method: method.title.replace(
        f"ms_decay={methods.MS_DECAY:g}", f"ms_decay={reported.ms_decay:g}"
    )
    lines = ["methods:"]
    lines += [f"  {method.name:<15}{title(method)}" for method in methods.METHODS.values()]
    return "\n".join([*lines, "", "examples:", *words.examples])
