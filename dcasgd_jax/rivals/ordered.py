"""A momentum in which a late gradient counts as if it had come on time."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
import optax

from dcasgd_jax import checks, rows, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.typing import PyTree, Scalar


@document_fields
class OrderedMomentumState(NamedTuple):
    """State of `ordered_momentum`.

    Attributes:
      velocity: Like params, at least float32.
      bucket: Int32 scalar: the one that is open.
      next_number: Int32 scalar: of the next gradient to be handed out.
      numbers: Int32 [num_workers]: of the gradient that each worker works on.
    """

    velocity: PyTree
    bucket: chex.Array
    next_number: chex.Array
    numbers: rows.PerWorker


def ordered_momentum(
    momentum: Scalar, num_workers: int, *, bucket_size: int | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""OrMo: a momentum ordered by when gradients were handed out, not by when they arrive.

    Gradients are numbered as workers pull: 0 to M - 1 at the start, then the next number after
    each push. K consecutive numbers share a bucket, and the momentum decays once per bucket:

    .. math::
        \text{first gradient of a newer bucket: } \quad
            & w \leftarrow w - \beta u, \; u \leftarrow \beta u \\
        \text{gradient of } b \text{ buckets ago: } \quad & u \leftarrow u + \beta^b \eta g, \;
            w \leftarrow w - \eta \, \frac{1 - \beta^{b+1}}{1 - \beta} \, g

    With gradients that do not depend on the parameters, any order of arrival ends at the same
    parameters and velocity. One worker is heavy ball. In the place of `optax.trace`, before
    `optax.scale_by_learning_rate`: the velocity here is u/η, so that a schedule rescales it.

    Args:
      momentum: β in [0, 1).
      num_workers: M ≥ 1.
      bucket_size: K ≥ 1 gradients per bucket; `None` is M, as in the paper.

    Returns:
      A transformation with `update(updates, state, params=None, *, worker)`; `worker` is an integer
      in `[0, num_workers)`, and pulls right after its push. Unknown extra arguments are ignored.

    Raises:
      ValueError: For a hyperparameter out of range, or a plain `worker` out of range.
      TypeError: If `worker` is not passed, or `num_workers` is no int.

    Source: Shi, Yang and Li, *Ordered Momentum for Asynchronous SGD*, 2024 (arXiv 2407.19234). A
    bucket opens here with the first gradient of it that arrives.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.chain(
      ...     rivals.ordered_momentum(0.5, num_workers=2), optax.scale_by_learning_rate(1.0))
      >>> state = tx.init(jnp.ones(()))
      >>> for worker in (0, 0, 1):  # numbers 0, 2 and 1, in buckets 0, 1 and 0
      ...     updates, state = tx.update(jnp.ones(()), state, worker=worker)
      ...     print(updates)
      -1.0
      -1.5
      -1.5
    """
    checks.check_fraction("momentum", momentum)
    num_workers = checks.check_count("num_workers", num_workers)
    size = num_workers if bucket_size is None else checks.check_count("bucket_size", bucket_size)

    def init_fn(params: PyTree) -> Any:
        return OrderedMomentumState(
            velocity=trees.zeros_to_accumulate(params),
            bucket=jnp.zeros((), jnp.int32),
            next_number=jnp.asarray(num_workers, jnp.int32),
            numbers=rows.PerWorker(jnp.arange(num_workers, dtype=jnp.int32)),
        )

    def update_fn(updates, state, params=None, *positional, worker=None, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        state.numbers.check(num_workers)
        worker = update_checks.checked_worker(worker, num_workers)
        bucket_of_push = state.numbers.read(worker) // size
        bucket = jnp.maximum(state.bucket, bucket_of_push)
        opened, late = bucket - state.bucket, bucket - bucket_of_push
        # Decays beta^n and their sums 1 + beta + ... + beta^(n - 1), for several buckets at once.
        decay = lambda n: jnp.asarray(momentum, float) ** n
        decays = lambda n: (1 - decay(n)) / (1 - momentum)

        def step(g, v):
            glide = momentum * decays(opened)
            return glide.astype(g.dtype) * v.astype(g.dtype) + decays(late + 1).astype(g.dtype) * g

        direction = trees.map_updates(step, updates, state.velocity)
        add = lambda v, g: decay(opened).astype(v.dtype) * v + decay(late).astype(v.dtype) * g
        return direction, OrderedMomentumState(
            velocity=trees.map_accumulators(add, state.velocity, updates),
            bucket=bucket,
            next_number=jnp.asarray(optax.safe_increment(state.next_number)),
            numbers=state.numbers.write(worker, state.next_number),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
