"""The options of `dcasgd-jax reproduce`."""

import argparse
import pathlib

from dcasgd_jax.commands import methods, options, values
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
    options.add(out, "--out", default=pathlib.Path(f"reproduce-{experiment}"))
    options.add_report_only(out)
    out.add_argument(
        "--checkpoint-every",
        type=values.positive,
        default=words.checkpoint_every,
        metavar="N",
        help="epochs between two checkpoints of a run, default %(default)g",
    )
    out.add_argument(
        "--eval-batch-size",
        type=values.integer_from(1),
        metavar="N",
        help="images evaluated at once; lower it if the device runs out of memory",
    )


def _add_data(parser: argparse.ArgumentParser, words: texts.Texts) -> None:
    group = parser.add_argument_group("data")
    options.add(
        group, "--data-dir",
        help=f"folder with {words.files}; default: download from the Hugging Face hub",
    )  # fmt: skip
    group.add_argument(
        "--cache-dir",
        type=pathlib.Path,
        metavar="DIR",
        help=f"keep {words.cached} and compiled programs there, for the next call",
    )
    for option, what in (("--subset", "training"), ("--test-subset", words.tested)):
        group.add_argument(
            option,
            type=values.integer_from(1),
            metavar="N",
            help=f"use only {words.subset} N {what} images",
        )


def _add_runs(parser: argparse.ArgumentParser, reported: paper.Paper) -> None:
    everything = reported.methods == tuple(methods.METHODS)
    shown = "all, listed below" if everything else " ".join(reported.methods)
    group = parser.add_argument_group("runs")
    options.add(
        group, "--workers", nargs="+", default=list(reported.workers),
        help="numbers of workers; sgd always has one",
    )  # fmt: skip
    options.add_methods(
        group, list(methods.METHODS), reported.methods,
        help=f"which methods, in this order; default: {shown}",
    )  # fmt: skip
    options.add(group, "--seeds", default=1)
    strengths = " ".join(f"{k}={v:g}" for k, v in reported.lambda0.items())
    for option, what, default in (
        ("--learning-rate", "of one method, or of all", f"{reported.learning_rate:g}"),
        ("--lambda0", "of one method, or of all that have one", strengths),
    ):
        options.add(
            group, option, metavar="[METHOD=]VALUE[,VALUE...]",
            help=f"{what}; each value makes a run; default {default}",
        )  # fmt: skip
    group.add_argument(
        "--max-pull",
        type=values.number_from(0),
        default=1.0,
        metavar="VALUE",
        help="cap of dcasgd-capped and rotated, default %(default)s",
    )


def _add_protocol(
    parser: argparse.ArgumentParser, words: texts.Texts, reported: paper.Paper
) -> None:
    default = settings.Setting()
    group = parser.add_argument_group(
        "protocol", "the same for all runs in one folder; other values need another --out"
    )
    group.add_argument(
        "--epochs",
        type=values.integer_from(1),
        default=reported.epochs,
        metavar="N",
        help="the steps of the learning rate move with it; default %(default)s",
    )
    options.add(
        group, "--batch-size", default=reported.batch_size, help="images per worker and gradient"
    )
    options.add(group, "--law")
    options.add(group, "--law-param")
    options.add(group, "--momentum", help="heavy ball in every method; default 0, as in the paper")
    group.add_argument(
        "--weight-decay",
        type=values.number_from(0),
        default=default.weight_decay,
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
    options.add(
        group, "--model", choices=list(words.models), default=next(iter(words.models)),
        help="; ".join(f"{name}: {what}" for name, what in words.models.items()),
    )  # fmt: skip
    for option, (number, what) in words.numbers.items():
        group.add_argument(
            option,
            type=values.integer_from(1),
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
        type=values.integer_from(1),
        metavar="N",
        help="epochs between two evaluations; default: as few as take no more than about a tenth "
        "of the time",
    )


def _epilog(words: texts.Texts, reported: paper.Paper) -> str:
    title = lambda method: method.title.replace(
        f"ms_decay={methods.MS_DECAY:g}", f"ms_decay={reported.ms_decay:g}"
    )
    lines = ["methods:"]
    lines += [f"  {method.name:<15}{title(method)}" for method in methods.METHODS.values()]
    return "\n".join([*lines, "", "examples:", *words.examples])
