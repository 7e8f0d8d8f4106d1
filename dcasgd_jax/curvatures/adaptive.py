"""The paper's adaptive curvature: the squared gradient by its root mean square."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dcasgd_jax import checks, compensation, rows, trees, update_checks
from dcasgd_jax.curvatures.curvature import Curvature, elementwise
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class AdaptiveState(NamedTuple):
    """State of `adaptive`; each field a `rows.PerWorker` if every worker has its own.

    Attributes:
      mean_square: Like params, at least float32.
      weight: What `bias_correction` divides by, a scalar; None without.
    """

    mean_square: Any
    weight: Any


def adaptive(
    ms_decay: Scalar = 0.95,
    eps: Scalar = 1e-7,
    bias_correction: bool = False,
    num_workers: int | None = None,
) -> Curvature:
    r"""The squared gradient by its root mean square: DC-ASGD-a.

    .. math:: MS \leftarrow m \, MS + (1 - m) \, g \odot g, \qquad
              c = g \odot g \,/ \sqrt{MS + \epsilon}

    The mean square is updated first.

    Args:
      ms_decay: m in [0, 1).
      eps: ε ≥ 0, inside the root. Where the root mean square is far below sqrt(ε) this is the
        squared gradient by sqrt(ε): with 1e-7 that floor lies at |g| = 3.2e-4.
      bias_correction: Divide the mean square by 1 - m^t, as Adam does; the paper does not.
      num_workers: If given, one mean square per worker, as in the paper authors' released code;
        `update` then needs `worker=`. `None` keeps one on the server, as in the paper.

    Returns:
      A curvature. Its state is a mean square like the parameters, of at least float32.

    Raises:
      ValueError: For a number out of range.
      TypeError: If `num_workers` is no integer.

    Source: Zheng et al., ICML 2017, DC-ASGD-a (MeanSquare).

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp
      >>> tx = dc.compensate_delay(2.0, curvature=dc.curvatures.adaptive(ms_decay=0.75, eps=0.0))
      >>> params, stale_params = jnp.asarray([1.0]), jnp.asarray([0.5])
      >>> updates, _ = tx.update(
      ...     jnp.asarray([0.2]), tx.init(params), params, stale_params=stale_params)
      >>> print(updates)  # 0.2 + 2 * 0.2**2 / 0.1 * 0.5, for MS = 0.25 * 0.2**2
      [0.6]
    """
    checks.check_fraction("ms_decay", ms_decay)
    checks.check_non_negative("eps", eps)
    if num_workers is not None:
        num_workers = checks.check_count("num_workers", num_workers)

    def init(params: PyTree) -> AdaptiveState:
        weight = jnp.zeros((), jnp.result_type(float)) if bias_correction else None
        state = AdaptiveState(trees.zeros_to_accumulate(params), weight)
        if num_workers is None:
            return state
        return AdaptiveState(*(rows.repeat_for_workers(kept, num_workers) for kept in state))

    def update(state: AdaptiveState, grads: PyTree, worker: Any = None) -> tuple[Any, Any]:
        before, row = state, None
        if num_workers is not None:
            state.mean_square.check(num_workers)
            row = update_checks.checked_worker(worker, num_workers)
            before = AdaptiveState(*(kept.read(row) for kept in state))
        mean_square = compensation.update_mean_square(before.mean_square, grads, ms_decay)
        # The mean square of ones: what the zeros at the start have left of it.
        weight = None if before.weight is None else ms_decay * before.weight + (1 - ms_decay)
        after = AdaptiveState(mean_square, weight)
        if row is not None:
            pairs = zip(state, after, strict=True)
            after = AdaptiveState(*(kept.write(row, new) for kept, new in pairs))
        if weight is not None:
            mean_square = jax.tree.map(lambda ms: (ms / weight).astype(ms.dtype), mean_square)
        return mean_square, after

    def diagonal(mean_square, grads, strength):
        strengths = compensation.adaptive_strength(mean_square, strength, eps)
        return compensation.scaled_curvature(grads, strengths)

    def floored(mean_square) -> PyTree:
        return jax.tree.map(lambda square: square < eps, mean_square)

    name = f"adaptive(ms_decay={ms_decay!r}, eps={eps!r}"
    name += ", bias_correction=True" if bias_correction else ""
    name += "" if num_workers is None else f", num_workers={num_workers}"
    needs = () if num_workers is None else (("worker", _WHAT_WORKER),)
    return elementwise(name + ")", diagonal, init=init, update=update, floored=floored, needs=needs)


_WHAT_WORKER = "the index in [0, num_workers) of the worker whose gradient this is"
