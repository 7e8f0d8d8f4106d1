"""The delays of the stages of a pipeline."""

import operator
from collections.abc import Callable

import jax

from dcasgd_jax import checks
from dcasgd_jax.typing import PyTree


def pipeline_delays(stage_of: Callable[[str], int], num_stages: int) -> Callable[[PyTree], PyTree]:
    r"""The delay of every parameter in an asynchronous pipeline with weight stashing.

    .. math:: \tau = D - 1 - stage

    In the steady state of one-forward-one-backward scheduling without flushes, a stage has seen
    D - 1 - stage updates between the forward pass of a batch and the update with its gradient: the
    last stage is never stale. With two buffered versions of all weights (PipeDream-2BW) the delay
    is 1 everywhere: pass `delay=1` instead.

    Args:
      stage_of: The stage in [0, num_stages) of a parameter, given its path, such as
        "blocks/3/kernel".
      num_stages: D ≥ 1.

    Returns:
      A function of the parameters that returns a tree of ints, for the argument `delay` of
      `delay_gradients` and `assume_delay`.

    Raises:
      ValueError: If `num_stages` is no positive integer; when the delays are made, if a parameter
        has no stage.

    Source: Narayanan et al., *PipeDream*, SOSP 2019 (1F1B, weight stashing), and
    *Memory-Efficient Pipeline-Parallel DNN Training*, ICML 2021 (2BW).

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> params = {"blocks": [jnp.ones(2), jnp.ones(2)], "head": jnp.ones(2)}
      >>> stage_of = lambda path: 2 if path == "head" else int(path.split("/")[1])
      >>> delays = dc.pipeline_delays(stage_of, num_stages=3)
      >>> print(delays(params))
      {'blocks': [2, 1], 'head': 0}
      >>> tx = dc.delay_gradients(optax.adam(1e-3), delays)
    """
    depth = checks.check_count("num_stages", num_stages)

    def delays(params: PyTree) -> PyTree:
        def delay_of(path, _):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            stage = stage_of(name)
            if not hasattr(stage, "__index__") or not 0 <= operator.index(stage) < depth:
                raise ValueError(
                    f"stage_of gives parameter {name!r} the stage {stage!r}: it must be an "
                    f"integer in [0, {depth})."
                )
            return depth - 1 - operator.index(stage)

        return jax.tree_util.tree_map_with_path(delay_of, params)

    return delays
