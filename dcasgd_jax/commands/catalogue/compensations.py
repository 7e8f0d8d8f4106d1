"""This package's own methods: no compensation, the paper's, and everything that was added to it."""

import dataclasses

import optax

import dcasgd_jax as dc
from dcasgd_jax.commands import methods, strength_rules
from dcasgd_jax.transforms import cap

EVERYWHERE_CAPPED = 1e30


def choices(momentum: float | None) -> list[methods.Method]:
    """The paper's methods and ours, then strengths, curvatures and the control."""
    found = [
        *methods.METHODS.values(),
        _capped(
            "capped-annealed",
            "capped, λ0 falls with the rate",
            (2.0, 4.0, 8.0),
            strength_rules.annealed,
        ),
        _capped(
            "capped-abs", "capped, |g| for g²", (4.0, 8.0, 16.0), curvature=dc.curvatures.absolute()
        ),
        _capped(
            "rows",
            "capped along the gradient of each output",
            (1.0, 2.0, 4.0),
            curvature=dc.curvatures.rows(),
        ),
        _capped(
            "ratio",
            "capped, λ by dc.strengths.ratio(number)",
            (0.5, 1.0, 2.0),
            strength_rules.ratio,
        ),
        _capped(
            "capped-share",
            "λ by dc.strengths.capped_share(number)",
            (0.02, 0.05, 0.1),
            strength_rules.capped_share,
        ),
        _capped(
            "least-squares",
            "capped, λ by dc.strengths.least_squares()",
            (1.0,),
            strength_rules.least_squares,
        ),
        _uncapped("fisher", "per-sample squares for g²", (0.5, 1.0, 2.0), dc.curvatures.fisher()),
        _uncapped(
            "hessian", "a share of the exact Hessian", (0.25, 0.5, 1.0), dc.curvatures.hessian()
        ),
        _control(momentum),
    ]
    return [dataclasses.replace(method, momentum=momentum) for method in found]


def _capped(
    name, title, numbers, rule=None, *, curvature: dc.curvatures.Curvature = methods.ADAPTIVE
) -> methods.Method:
    return methods.Method(
        name, title, numbers=numbers, max_pull=1.0, curvature=curvature, rule=rule
    )


def _uncapped(name, title, numbers, curvature) -> methods.Method:
    return methods.Method(name, title, numbers=numbers, curvature=curvature)


def _control(momentum: float | None) -> methods.Method:
    def recipe(learning_rate, pull, factor):
        rate = lambda count: learning_rate * factor(count)
        return dc.compensate_updates(
            optax.sgd(rate, momentum),
            EVERYWHERE_CAPPED,  # the cap decides everywhere: no curvature is left
            max_pull=pull,
            learning_rate=cap.effective_learning_rate(rate, momentum),
        )

    title = "control: the same pull everywhere"
    return methods.Method("uniform-pull", title, numbers=(0.25, 0.5, 0.8), recipe=recipe)
