"""Settings of the strength that need no tuning of their own, to be compared with a tuned λ0."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

import dcasgd_jax as dc
from dcasgd_jax.commands import methods, strength_rules

Rule = Callable[[Any, optax.Schedule], Any]


def _candidate(
    name: str,
    title: str,
    number: float,
    rule: Rule | None = None,
    *,
    max_pull: float | None = 1.0,
    curvature: dc.curvatures.Curvature = methods.ADAPTIVE,
) -> methods.Method:
    return methods.Method(
        name, title, numbers=(number,), max_pull=max_pull, curvature=curvature, rule=rule
    )


def _ratio_per_leaf(rho: Any, factor: optax.Schedule) -> Any:
    del factor
    return dc.strengths.ratio(rho, per_leaf=True)


def _ratio_unsmoothed(rho: Any, factor: optax.Schedule) -> Any:
    del factor
    return dc.strengths.ratio(rho, decay=0.0)


UNTUNED = dataclasses.replace(methods.METHODS["asgd"], title="asynchronous SGD")

TUNED = dataclasses.replace(
    methods.METHODS["dcasgd-capped"],
    name="tuned",
    title="λ0 tuned",
    numbers=(0.5, 1.0, 2.0, 4.0, 8.0, 32.0, 128.0),
)
"""What every candidate is compared with: λ0 and learning rate tuned, capped."""

CANDIDATES = (
    _candidate("paper", "λ0 = 2, uncapped: the paper's", 2.0, max_pull=None),
    _candidate("lambda4", "λ0 = 4", 4.0),
    _candidate("lambda8", "λ0 = 8", 8.0),
    _candidate("annealed8", "λ0 = 8, falls with the rate", 8.0, strength_rules.annealed),
    _candidate("abs8", "|g|, λ0 = 8", 8.0, curvature=dc.curvatures.absolute()),
    _candidate("ratio1-uncapped", "ratio(1), uncapped", 1.0, strength_rules.ratio, max_pull=None),
    _candidate("ratio1", "ratio(1)", 1.0, strength_rules.ratio),
    _candidate("ratio2", "ratio(2)", 2.0, strength_rules.ratio),
    _candidate("ratio2-per-leaf", "ratio(2, per_leaf=True)", 2.0, _ratio_per_leaf),
    _candidate("ratio2-unsmoothed", "ratio(2, decay=0)", 2.0, _ratio_unsmoothed),
    _candidate("share2", "capped_share(0.02)", 0.02, strength_rules.capped_share),
    _candidate("share5", "capped_share(0.05)", 0.05, strength_rules.capped_share),
    _candidate(
        "abs-share2",
        "|g|, capped_share(0.02)",
        0.02,
        strength_rules.capped_share,
        curvature=dc.curvatures.absolute(),
    ),
    _candidate("least-squares", "least_squares()", 1.0, strength_rules.least_squares),
    # So strong that the cap decides everywhere: no curvature is left.
    _candidate("uniform25", "uniform pull of 0.25", 1e30, max_pull=0.25),
    _candidate("uniform50", "uniform pull of 0.5", 1e30, max_pull=0.5),
)
"""All capped with `max_pull=1` unless the title says otherwise."""

CONTROLS = frozenset({UNTUNED.name, "uniform25", "uniform50"})
"""Names of what the verdict never recommends: no curvature decides anything there."""
