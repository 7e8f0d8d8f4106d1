"""Settings of the strength that need no tuning of their own, to be compared with a tuned λ0."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.commands import methods, strength_rules


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting.

    Args:
      title: For tables.
      method: How to train; its name is that of the candidate.
      number: What stands for λ0; `None` for a method without one.
      is_control: Whether no curvature decides anything: to compare with, never to recommend.
    """

    title: str
    method: methods.Method
    number: float | None
    is_control: bool = False

    @property
    def name(self) -> str:
        """For files and options."""
        return self.method.name


Rule = Callable[[Any, optax.Schedule], Any]


def _candidate(
    name: str,
    title: str,
    number: float,
    rule: Rule | None = None,
    *,
    max_pull: float | None = 1.0,
    curvature: dc.curvatures.Curvature = methods.ADAPTIVE,
    is_control: bool = False,
) -> Candidate:
    method = methods.Method(
        name,
        title,
        sim.Asynchronous(),
        compensates=True,
        max_pull=max_pull,
        curvature=curvature,
        rule=rule,
    )
    return Candidate(title, method, number, is_control)


def _ratio_per_leaf(rho: Any, decay: optax.Schedule) -> Any:
    del decay
    return dc.strengths.ratio(rho, per_leaf=True)


def _ratio_unsmoothed(rho: Any, decay: optax.Schedule) -> Any:
    del decay
    return dc.strengths.ratio(rho, decay=0.0)


UNTUNED = Candidate("asynchronous SGD", methods.METHODS["asgd"], None, is_control=True)

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
    _candidate("uniform25", "uniform pull of 0.25", 1e30, max_pull=0.25, is_control=True),
    _candidate("uniform50", "uniform pull of 0.5", 1e30, max_pull=0.5, is_control=True),
)
"""All capped with `max_pull=1` unless the title says otherwise."""

CONTROLS = frozenset(c.name for c in (UNTUNED, *CANDIDATES) if c.is_control)
"""Names of what the verdict never recommends."""
