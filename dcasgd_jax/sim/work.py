"""What a worker does between its pull and its push: as it stands here, one gradient."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import checks, samples, update_checks
from dcasgd_jax.typing import PyTree

# loss(params, model_state, batch, key) -> (loss, model_state); None for what there is not.
Loss = Callable[[PyTree, PyTree, PyTree, Any], tuple[jax.Array, PyTree]]


class WorkerState(NamedTuple):
    """What a worker keeps from one push to the next; None for what it does not need."""

    inner: PyTree | None = None  # state of an inner optimizer
    local: PyTree | None = None  # its params after its last step, if it goes on from them
    transform: PyTree | None = None  # state of `transform`
    pushed: PyTree | None = None  # its last push, if it goes ahead with that


class Pulled(NamedTuple):
    """What a worker begins a push with."""

    params: PyTree  # or what `send` makes of them
    model_state: PyTree | None = None
    worker_state: WorkerState | None = None


class Gradient(NamedTuple):
    """What a worker computes."""

    loss: jax.Array
    grads: PyTree
    model_state: PyTree | None = None
    worker_state: WorkerState | None = None


class Worker(Protocol):
    """What `simulate` needs of a worker; a value that can be hashed."""

    @property
    def eager(self) -> float:
        """How far it goes with its last push while that is not in what it pulled; 0: not at all."""
        ...

    def check(self, num_workers: int) -> None:
        """Raises ValueError if there cannot be so many of these workers."""
        ...

    def check_batch(self, batch: PyTree) -> None:
        """Raises ValueError for a batch, arrays or their shapes, that is not of this worker."""
        ...

    def samples(self, batch: PyTree, num_workers: int) -> np.ndarray:
        """Examples of each worker's push; int64 [num_workers]."""
        ...

    def init(self, params: PyTree) -> WorkerState | None:
        """The state of one worker before its first push; None if it has none."""
        ...

    def run(self, loss: Loss, pulled: Pulled, batch: PyTree, key: Any, worker: Any) -> Gradient:
        """What the worker, an int32 scalar, pushes."""
        ...

    def about(self, loss: Loss, pulled: Pulled, batch: PyTree, key: Any) -> Mapping[str, Any]:
        """Extra arguments of an update: what transformations may ask about the batch."""
        ...


@dataclasses.dataclass(frozen=True)
class OneGradient:
    """A worker takes one gradient at the params that it pulled, and pushes it.

    Args:
      transform: A transformation of each push, on the worker: its state is the worker's own, and
        what it returns is what arrives. Default: none.

    Raises:
      TypeError: If `transform` is no optax transformation.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=50, seed=0)
      >>> result = sim.simulate(
      ...     problem, optax.sgd(0.1), schedule, jnp.ones((50, 3)),
      ...     worker=sim.OneGradient(transform=optax.clip(1.0)))
      >>> print(jnp.round(result.params, 2))
      [1. 1. 1.]
    """

    transform: optax.GradientTransformation | None = None

    def __post_init__(self):
        check_transform("OneGradient", self.transform)

    @property
    def eager(self) -> float:
        """See `Worker.eager`."""
        return 0.0

    def check(self, num_workers: int) -> None:
        """There can be any number of them."""

    def check_batch(self, batch: PyTree) -> None:
        """Any batch will do."""

    def samples(self, batch: PyTree, num_workers: int) -> np.ndarray:
        """See `Worker.samples`."""
        return np.full(num_workers, batch_size(batch), np.int64)

    def init(self, params: PyTree) -> WorkerState | None:
        """See `Worker.init`."""
        return state_or_none(WorkerState(transform=init_state(self.transform, params)))

    def run(self, loss: Loss, pulled: Pulled, batch: PyTree, key: Any, worker: Any) -> Gradient:
        """See `Worker.run`."""
        del worker
        (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(
            pulled.params, pulled.model_state, batch, key
        )
        check_model_state(model_state, pulled.model_state)
        return make_push(self.transform, pulled, value, grads, model_state, pulled.worker_state)

    def about(self, loss: Loss, pulled: Pulled, batch: PyTree, key: Any) -> Mapping[str, Any]:
        """What transformations may ask about the batch; costs nothing unless one does.

        Returns:
          `hessian_vector_product(tangent)`, the Hessian of the event's loss, at the params, model
          state and key of its gradient, times a tree like the params; and `fisher_diagonal()`, the
          mean of the squared gradients of the batch's samples, each taken as a batch of one with
          the event's key, in float32 or wider, but those that are not a number, as a sample of
          weight 0 is; it needs memory for the gradients of all samples.
          And what `size_of_batch` says.
        """

        def loss_of(params, batch):
            return loss(params, pulled.model_state, batch, key)[0]

        def hessian_vector_product(tangent: PyTree) -> PyTree:
            update_checks.check_like_params("tangent", tangent, pulled.params)
            tangent = jax.tree.map(lambda t, w: jnp.asarray(t, w.dtype), tangent, pulled.params)
            gradient_at = jax.grad(lambda params: loss_of(params, batch))
            return jax.jvp(gradient_at, (pulled.params,), (tangent,))[1]

        def fisher_diagonal() -> PyTree:
            if pulled.model_state is not None:
                raise ValueError(
                    "fisher_diagonal needs the gradient of each sample alone, but the loss has a "
                    "model state, such as the statistics of a batch, which a sample alone does "
                    "not have."
                )
            return samples.mean_squared_gradient(loss_of, pulled.params, batch)

        return {
            "hessian_vector_product": hessian_vector_product,
            "fisher_diagonal": fisher_diagonal,
            **size_of_batch(batch),
        }


def go_ahead(eager: float, pulled: Pulled, missing: Any) -> Pulled:
    """Begins a step of the worker's own last push further on, where that is `missing`."""
    assert pulled.worker_state is not None
    step = lambda w, push: jnp.where(missing, (w - eager * push).astype(w.dtype), w)
    return pulled._replace(params=jax.tree.map(step, pulled.params, pulled.worker_state.pushed))


def size_of_batch(batch: PyTree) -> dict[str, int]:
    """`batch_size`, the number of examples, where the shapes say it: an extra argument, or none.

    That is where one array has one entry for each example, such as a label, and all arrays begin
    with the same axis. Arrays of integers with more axes may be tokens, of which each is a term of
    the loss: then nothing is said, because a wrong size would be a wrong curvature. Those of bytes
    with three axes and more are images.

    Args:
      batch: A tree of arrays, or their shapes and dtypes.
    """
    leaves = [(np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in jax.tree.leaves(batch)]
    vectors = {shape for shape, _ in leaves if len(shape) == 1}
    firsts = {shape[:1] for shape, _ in leaves}
    is_image = lambda shape, dtype: dtype == jnp.uint8 and len(shape) > 2
    may_be_tokens = any(
        len(leaf[0]) > 1 and jnp.issubdtype(leaf[1], jnp.integer) and not is_image(*leaf)
        for leaf in leaves
    )
    if len(vectors) != 1 or firsts != vectors or may_be_tokens:
        return {}
    ((size,),) = vectors
    return {"batch_size": size} if size else {}


def batch_size(batch: PyTree) -> int:
    """The leading axis that all arrays of a batch share; 1 if they share none."""
    sizes = {np.shape(leaf)[0] if np.shape(leaf) else 1 for leaf in jax.tree.leaves(batch)}
    return sizes.pop() if len(sizes) == 1 else 1


def refused(why: str) -> dict[str, Callable[..., PyTree]]:
    """The functions of `OneGradient.about`, where there is no answer."""

    def refuse(name):
        raise ValueError(f"A transformation asks for {name}, but {why}.")

    return {
        "hessian_vector_product": lambda tangent: refuse("hessian_vector_product"),
        "fisher_diagonal": lambda: refuse("fisher_diagonal"),
    }


def check_model_state(returned: PyTree, model_state: PyTree) -> None:
    """`loss_fn` must return the model state as it got it."""
    describe = lambda tree: jax.tree.map(
        lambda leaf: (tuple(np.shape(leaf)), np.dtype(jax.dtypes.result_type(leaf)).name), tree
    )
    got, given = describe(returned), describe(model_state)
    if got != given:
        raise ValueError(
            "loss_fn must return (loss, model_state) with the model state shaped as it was given: "
            f"given {given}, got {got}."
        )


def check_transform(owner: str, transform: Any) -> None:
    """Raises TypeError unless this is a transformation of pushes, or None."""
    is_one = lambda value: isinstance(value, optax.GradientTransformation | None)
    checks.check_kind(f"{owner}.transform", transform, is_one, "an optax transformation or None")


def init_state(tx: optax.GradientTransformation | None, params: PyTree) -> PyTree | None:
    """The first state of a transformation that there may be."""
    return None if tx is None else tx.init(params)


def state_or_none(state: WorkerState) -> WorkerState | None:
    """None for a state with nothing in it."""
    return None if all(part is None for part in state) else state


def make_push(
    transform: optax.GradientTransformation | None,
    pulled: Pulled,
    loss: jax.Array,
    push: PyTree,
    model_state: PyTree | None,
    state: WorkerState | None,
) -> Gradient:
    """A push as it leaves the worker; `state` is the worker's after it."""
    if transform is not None:
        state = WorkerState() if state is None else state
        update: Callable[..., Any] = optax.with_extra_args_support(transform).update
        push, after = update(push, state.transform, pulled.params)
        update_checks.check_like_params("worker.transform's push", push, pulled.params)
        state = state._replace(transform=after)
    if state is not None and state.pushed is not None:
        state = state._replace(pushed=push)
    return Gradient(loss, push, model_state, state)
