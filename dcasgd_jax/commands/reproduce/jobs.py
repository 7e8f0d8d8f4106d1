"""What the options of `dcasgd-jax reproduce` mean together: which runs, in which order."""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from dcasgd_jax.commands import methods, values
from dcasgd_jax.commands.reproduce import paper, settings, texts


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run, in order, and where to put it."""

    setting: settings.Setting
    runs: tuple[settings.Run, ...]  # of the first seed
    seeds: int
    data_dir: pathlib.Path | None
    cache_dir: pathlib.Path | None
    subset: int | None
    test_subset: int | None
    eval_batch_size: int | None
    checkpoint_every: float
    out: pathlib.Path
    report_only: bool


def make_job(arguments: argparse.Namespace) -> Job:
    """Checks the options together.

    Raises:
      UsageError: If they make no runs.
    """
    chosen = [methods.METHODS[name] for name in dict.fromkeys(arguments.methods)]
    workers = list(dict.fromkeys(arguments.workers))
    laws = [values.make_law(arguments.law, arguments.law_param, m) for m in workers]
    own = {
        field: getattr(arguments, field)
        for field in ("image_size", "num_classes")
        if hasattr(arguments, field)
    }
    setting = settings.Setting(
        experiment=arguments.experiment,
        augmentation=texts.TEXTS[arguments.experiment].augmentation,
        **own,
        model=arguments.model,
        dtype=arguments.dtype,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        law=laws[0],
        momentum=arguments.momentum or 0.0,
        weight_decay=arguments.weight_decay,
        batch_norm=arguments.batch_norm,
        eval_every=arguments.eval_every,
    )
    of_methods = functools.partial(values.of_methods, chosen=chosen, several=True)
    rates = of_methods("--learning-rate", arguments.learning_rate)
    lambda0s = of_methods("--lambda0", arguments.lambda0)
    return Job(
        setting=setting,
        runs=_all_runs(chosen, workers, rates, lambda0s, arguments.max_pull, setting.paper),
        **{field: getattr(arguments, field) for field in _PASSED_ON},
    )


_PASSED_ON = (
    *("data_dir", "cache_dir", "subset", "test_subset", "eval_batch_size", "checkpoint_every"),
    *("seeds", "out", "report_only"),
)


def _all_runs(
    chosen: Sequence[methods.Method],
    workers: Sequence[int],
    rates: values.Values,
    lambda0s: values.Values,
    max_pull: float,
    reported: paper.Paper,
) -> tuple[settings.Run, ...]:
    """In the order of the table; all of them run one seed before the next."""
    found = [
        settings.Run(
            method=method.name,
            workers=1 if method.name == "sgd" else count,
            learning_rate=rate,
            lambda0=lambda0,
            max_pull=None if method.max_pull is None else max_pull,
        )
        for count in workers
        for method in chosen
        for rate in rates.get(method.name, (reported.learning_rate,))
        for lambda0 in lambda0s.get(method.name, (reported.lambda0.get(method.name),))
    ]
    return tuple(dict.fromkeys(found))
