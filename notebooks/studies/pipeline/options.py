"""The options of `shakespeare.py`, and what they mean together."""

import argparse
import dataclasses
import pathlib

from dcasgd_jax.commands import errors, options, values
from pipeline import delays, methods, optimizers, settings, text

DESCRIPTION = """\
Trains a small transformer on the characters of a text with gradients that arrive late, as in an
asynchronous pipeline, and compares ways to live with it. Every method is tuned for every delay,
with as many configurations as any other, on seeds of its own. Finished runs are kept in --out:
call it again to go on."""

_SIZES = {  # field of Setting -> help
    "width": "of the transformer",
    "blocks": "of the transformer; the pipeline has 2 more stages",
    "heads": "of attention, a divisor of --width",
    "context": "characters in a window",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run, and where to put it."""

    setting: settings.Setting
    data: text.Text
    optimizers: tuple[str, ...]
    delays: tuple[str, ...]
    methods: tuple[str, ...]
    num_seeds: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of the program."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--data-file", type=pathlib.Path, metavar="FILE", help="plain text in UTF-8 to train on"
    )
    parser.add_argument(
        "--generated", action="store_true", help="train on a small text made up on the spot"
    )
    names = tuple(optimizers.OPTIMIZERS)
    parser.add_argument(
        "--optimizers", nargs="+", choices=names, default=names, metavar="NAME",
        help=f"default: {' '.join(names)}",
    )  # fmt: skip
    options.add_methods(parser, tuple(methods.METHODS), tuple(methods.METHODS))
    default = ("2", "4", "8", delays.TWO_BUFFERS, delays.STAGES)
    parser.add_argument(
        "--delays",
        nargs="+",
        type=_delay,
        default=default,
        metavar="DELAY",
        help="a number of updates, 2bw (1) or stages (D - 1 - stage of a pipeline of D stages); "
        f"default: {' '.join(default)}",
    )
    options.add(parser, "--seeds", default=3)
    default_setting = settings.Setting()
    options.add(
        parser, "--updates", default=default_setting.updates,
        help=f"of a run, a multiple of {settings.EVALUATIONS}",
    )  # fmt: skip
    options.add(
        parser, "--batch-size", default=default_setting.batch_size, help="windows per update"
    )
    for field, words in _SIZES.items():
        parser.add_argument(
            f"--{field}",
            type=values.integer_from(1),
            default=getattr(default_setting, field),
            metavar="N",
            help=f"{words}; default %(default)s",
        )
    options.add(parser, "--out", default=pathlib.Path("shakespeare-results"))
    options.add_report_only(parser)


def make_job(arguments: argparse.Namespace) -> Job:
    """Reads the text, and checks everything together.

    Raises:
      UsageError: If the options make no runs.
    """
    fields = {field.name for field in dataclasses.fields(settings.Setting)}
    setting = settings.Setting(**{name: getattr(arguments, name) for name in fields})
    chosen = tuple(dict.fromkeys(arguments.delays))
    values.check_seeds(arguments.seeds)
    _check(setting, chosen)
    data = _text(arguments)
    text.check_length(data, setting.context)
    return Job(
        setting=setting,
        data=data,
        optimizers=tuple(dict.fromkeys(arguments.optimizers)),
        delays=chosen,
        methods=tuple(dict.fromkeys(arguments.methods)),
        num_seeds=arguments.seeds,
    )


def _text(arguments: argparse.Namespace) -> text.Text:
    if arguments.generated and arguments.data_file is not None:
        raise errors.UsageError("give --data-file or --generated, not both")
    if arguments.generated:
        return text.generate()
    if arguments.data_file is None:
        raise errors.UsageError(
            "give a plain text with --data-file FILE, such as Shakespeare's works, or try it with "
            "--generated, a small text made up on the spot"
        )
    return text.read(arguments.data_file)


def _check(setting: settings.Setting, chosen: tuple[str, ...]) -> None:
    if setting.width % setting.heads:
        raise errors.UsageError(f"--heads {setting.heads}: must divide --width {setting.width}")
    if setting.updates % settings.EVALUATIONS:
        raise errors.UsageError(
            f"--updates {setting.updates}: must be a multiple of {settings.EVALUATIONS}"
        )
    for name in chosen:
        if setting.updates < 2 * delays.largest(name, setting.blocks):
            raise errors.UsageError(
                f"--delays {name}: more than half of --updates {setting.updates}; nothing would be "
                "learnt"
            )


def _delay(value: str) -> str:
    """2bw, stages or a number of steps, as a name."""
    if value in (delays.TWO_BUFFERS, delays.STAGES):
        return value
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(
            f"{value!r} is no integer >= 1, {delays.TWO_BUFFERS} or {delays.STAGES}"
        )
    return str(int(value))
