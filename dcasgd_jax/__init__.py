"""Delay-compensated asynchronous SGD for JAX.

Optax transformations that correct stale gradients (Zheng et al., ICML 2017), and in
`dcasgd_jax.sim` an exact, compiled simulator of asynchronous training.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from dcasgd_jax import (
        compressions,
        curvatures,
        diagnostics,
        loggers,
        preconditioners,
        rivals,
        strengths,
    )
    from dcasgd_jax.alias import dcasgd
    from dcasgd_jax.compensation import adaptive_strength, compensated_gradient, update_mean_square
    from dcasgd_jax.transforms import (
        AssumeDelayState,
        CompensateDelayState,
        CompensateUpdatesState,
        CompensationMetrics,
        CompensationSums,
        DelayGradientsState,
        RememberPullsState,
        assume_delay,
        compensate_delay,
        compensate_updates,
        compensation_metrics,
        delay_gradients,
        pipeline_delays,
        record_pull,
        remember_pulls,
    )

__version__ = "0.1.0"

__all__ = [
    "AssumeDelayState",
    "CompensateDelayState",
    "CompensateUpdatesState",
    "CompensationMetrics",
    "CompensationSums",
    "DelayGradientsState",
    "RememberPullsState",
    "adaptive_strength",
    "assume_delay",
    "compensate_delay",
    "compensate_updates",
    "compensated_gradient",
    "compensation_metrics",
    "compressions",
    "curvatures",
    "dcasgd",
    "delay_gradients",
    "diagnostics",
    "loggers",
    "pipeline_delays",
    "preconditioners",
    "record_pull",
    "remember_pulls",
    "rivals",
    "strengths",
    "update_mean_square",
]

_ROOMS = (
    "compressions", "curvatures", "diagnostics", "loggers", "preconditioners", "rivals",
    "strengths",
)  # fmt: skip
_HOMES = {
    "dcasgd": "alias",
    "adaptive_strength": "compensation",
    "compensated_gradient": "compensation",
    "update_mean_square": "compensation",
}  # of the other names: transforms

if not typing.TYPE_CHECKING:  # a type checker would believe any name

    def __getattr__(name):
        """Imports what a name stands for when it is used first: the program's help needs no jax."""
        if name not in __all__:
            raise AttributeError(f"module 'dcasgd_jax' has no attribute {name!r}")
        if name in _ROOMS:
            return importlib.import_module(f"dcasgd_jax.{name}")
        home = importlib.import_module(f"dcasgd_jax.{_HOMES.get(name, 'transforms')}")
        globals()[name] = getattr(home, name)
        return globals()[name]

    def __dir__():
        return [*globals(), *__all__]
