"""Workers that take many steps of their own before they push: local SGD, DiLoCo."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import checks, trees
from dcasgd_jax.sim import work
from dcasgd_jax.typing import PyTree

InnerState = Literal["per_worker", "reset"]
Pushed = Literal["params", "mean_gradient"]
_WHY_NO_CURVATURES = (
    "a push of local steps is of several batches, and no gradient at the params that were pulled"
)


@dataclasses.dataclass(frozen=True)
class LocalSteps:
    r"""A worker takes many steps of its own and pushes the way that it went: DiLoCo, local SGD.

    .. math:: \theta_0 = w_r, \quad \theta_{i+1} = \theta_i + inner\_tx(\nabla f(\theta_i; B_i)),
              \quad push = w_r - \theta_H

    The push is a pseudo-gradient: it points uphill, so that the server steps against it as against
    a gradient, with `optax.sgd(1.0)` to where the worker is, and with any other chain as an outer
    optimizer. The row of an event holds the batches of all its steps along a leading axis. The loss
    that is traced is the mean over the steps, all taken from the same random key of the event,
    folded with the step (with one step, that key itself, so that one step of `optax.sgd(1.0)` is
    `OneGradient()`, bit for bit). Compute times are of whole pushes: see `sim.StepsTime`.

    A worker that crashes loses the steps that it was at; restarted, it has the inner state of its
    last push. With `keep`, the server's news come while the worker trains on
    (overlapped communication, as in streaming DiLoCo): it takes `merge_after` steps from where its
    last push left it, then mixes in what it pulled,
    :math:`\theta \leftarrow keep\,\theta + (1 - keep)\,w_r`, and takes the other steps. With
    `eager` it does not wait for its own news either: while its last push is not in what it pulls,
    :math:`w_r - eager \cdot push` stands for :math:`w_r`, also as the stale point.

    Args:
      inner_tx: The inner optimizer, any optax chain that asks for nothing but gradients, params and
        `value`, the loss; the same object again reuses the compiled program.
      num_steps: H ≥ 1, or one number for each worker, such as `sim.steps_by_speed` gives. Then a
        row has as many batches as the largest, and a worker uses the first of them.
      inner_state: "per_worker": each worker keeps the state of its inner optimizer from push to
        push. "reset": every push begins with a new one.
      push: "params": :math:`w_r - \theta_H`, summed up step by step in float32 or wider.
        "mean_gradient": the mean of the gradients along the way.
      transform: As in `OneGradient`.
      merge_after: Steps, 0 ≤ `merge_after` < H, from where the last push left the worker.
      keep: In [0, 1), the share of the worker's own params at the merge; 0 with `merge_after` 0 is
        the plain pull.
      eager: ≥ 0, how far a worker goes with its own last push while the server has not: its share
        of an update times the outer learning rate, where that is SGD's.
      unroll: Steps per iteration of the compiled loop; H for convolutions on the CPU, which XLA
        runs far slower inside a loop.

    Raises:
      ValueError: For numbers out of range.
      TypeError: If `inner_tx` is no optax transformation.

    Source: H steps and pseudo-gradients: Douillard et al., "DiLoCo", 2023, algorithm 1; pushed
    without waiting: Liu et al., "Asynchronous Local-SGD Training for Language Modeling", 2024;
    merging: Douillard et al., "Streaming DiLoCo", 2025, section 2.2; own news at once: Kale et al.,
    "Eager Updates for Overlapped Communication and Computation in DiLoCo", 2025, here for a server
    that orders pushes, with a step of SGD where the paper has an outer optimizer on each worker.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=20, seed=0)
      >>> result = sim.simulate(
      ...     problem, optax.sgd(0.5), schedule, jnp.ones((20, 8, 3)),  # [pushes, steps, ...]
      ...     worker=sim.LocalSteps(optax.sgd(0.05), num_steps=8))
      >>> print(jnp.round(result.params, 2))
      [1. 1. 1.]
    """

    inner_tx: optax.GradientTransformation
    num_steps: int | Sequence[int]
    inner_state: InnerState = "per_worker"
    push: Pushed = "params"
    transform: optax.GradientTransformation | None = None
    merge_after: int = 0
    keep: float = 0.0
    eager: float = 0.0
    unroll: int = 1

    def __post_init__(self):
        is_tx = lambda value: isinstance(value, optax.GradientTransformation)
        wanted = "an optax transformation, such as optax.adam(1e-3)"
        checks.check_kind("LocalSteps.inner_tx", self.inner_tx, is_tx, wanted)
        steps = checks.check_counts("LocalSteps.num_steps", self.num_steps)
        object.__setattr__(self, "num_steps", steps)
        work.check_transform("LocalSteps", self.transform)
        for name, choices in (("inner_state", InnerState), ("push", Pushed)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"LocalSteps.{name} must be one of {list(get_args(choices))}, got "
                    f"{getattr(self, name)!r}."
                )
        checks.check_fields(self, merge_after=0, unroll=1)
        checks.check_fraction("LocalSteps.keep", self.keep)
        checks.check_non_negative("LocalSteps.eager", self.eager)
        if self.merge_after >= min(self._of_workers(1)):
            raise ValueError(
                f"LocalSteps.merge_after is {self.merge_after}, but a worker takes only "
                f"{min(self._of_workers(1))} steps: it must be less."
            )

    @property
    def _most(self) -> int:
        return max(self._of_workers(1))

    @property
    def _merges(self) -> bool:
        return bool(self.merge_after or self.keep)

    def _of_workers(self, num_workers: int) -> tuple[int, ...]:
        steps = self.num_steps
        return steps if isinstance(steps, tuple) else (int(steps),) * num_workers  # type: ignore[arg-type]

    def check(self, num_workers: int) -> None:
        """See `work.Worker.check`."""
        checks.check_length("LocalSteps.num_steps", self.num_steps, num_workers)

    def check_batch(self, batch: PyTree) -> None:
        """Raises ValueError unless every array has the leading axis of steps, and examples."""
        found = jax.tree_util.tree_leaves_with_path(batch)
        hint = (
            f"With LocalSteps a row of batches holds the batches of all {self._most} steps: arrays "
            f"[num_events, {self._most}, ...], or of sim.Indexed rows [num_events, {self._most}, "
            f"batch_size], such as ShardedEpochs(...).rows(schedule, num_steps={self._most})."
        )
        for path, leaf in found:
            shape = np.shape(leaf)
            if not shape or shape[0] != self._most:
                raise ValueError(
                    f"The batch of an event is {list(shape)} at "
                    f"batch{jax.tree_util.keystr(path)}, without a leading axis of {self._most} "
                    f"steps. {hint}"
                )
        scalars = [path for path, leaf in found if len(np.shape(leaf)) == 1]
        if scalars and len(scalars) < len(found):
            raise ValueError(
                f"Of a step's batch, batch{jax.tree_util.keystr(scalars[0])} is a single number, "
                "where others are arrays: the leading axis of steps seems to be the examples of "
                f"one batch. {hint} (Of a number for each step make an array "
                f"[num_events, {self._most}, 1].)"
            )

    def samples(self, batch: PyTree, num_workers: int) -> np.ndarray:
        """Examples of each worker's push; int64 [num_workers]."""
        of_step = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
        return np.array(self._of_workers(num_workers), np.int64) * work.batch_size(of_step)

    def init(self, params: PyTree) -> work.WorkerState | None:
        """The state of one worker before its first push; None if it has none."""
        return work.state_or_none(
            work.WorkerState(
                inner=self.inner_tx.init(params) if self.inner_state == "per_worker" else None,
                local=params if self._merges else None,
                transform=work.init_state(self.transform, params),
                pushed=optax.tree.zeros_like(params) if self.eager else None,
            )
        )

    def run(
        self, loss: work.Loss, pulled: work.Pulled, batch: PyTree, key: Any, worker: Any
    ) -> work.Gradient:
        """What the worker pushes; a `work.Gradient`."""
        state = work.WorkerState() if pulled.worker_state is None else pulled.worker_state
        one_step = functools.partial(self._step, loss, batch, key)
        first = jax.tree.map(lambda leaf: leaf[0], batch)
        shapes = jax.eval_shape(loss, pulled.params, pulled.model_state, first, key)
        if pulled.model_state is not None:  # before the loop, whose words for it are obscure
            work.check_model_state(shapes[1], pulled.model_state)
        local = _Local(
            params=state.local if self._merges else pulled.params,
            inner=self.inner_tx.init(pulled.params) if state.inner is None else state.inner,
            model_state=pulled.model_state,
            way=trees.zeros_to_accumulate(pulled.params),
            loss=jnp.zeros(shapes[0].shape, shapes[0].dtype),
        )
        if self._merges:
            local = self._loop(0, self.merge_after, one_step, local)
            local = self._merge(local, pulled.params)
        steps = self._steps_of(worker)
        local = self._loop(self.merge_after, steps, one_step, local)
        way = local.way
        if self.push == "mean_gradient":
            way = jax.tree.map(lambda total: total / steps, way)
        push = jax.tree.map(lambda leaf, w: leaf.astype(w.dtype), way, pulled.params)
        after = state._replace(
            inner=None if self.inner_state == "reset" else local.inner,
            local=local.params if self._merges else None,
        )
        return work.make_push(
            self.transform, pulled, local.loss / steps, push, local.model_state,
            work.state_or_none(after),
        )  # fmt: skip

    def about(
        self, loss: work.Loss, pulled: work.Pulled, batch: PyTree, key: Any
    ) -> Mapping[str, Any]:
        """Nothing that a curvature could use."""
        del loss, pulled, batch, key
        return work.refused(_WHY_NO_CURVATURES)

    def _steps_of(self, worker: Any) -> Any:
        """Steps of this worker: a number, or an int32 scalar where they differ."""
        steps = self.num_steps
        return jnp.asarray(steps, jnp.int32)[worker] if isinstance(steps, tuple) else steps

    def _loop(self, start: int, stop: Any, one_step: Callable, local: "_Local") -> "_Local":
        """Some steps; as many as are known beforehand are a scan, which may be unrolled."""
        unroll = min(self.unroll, max(stop - start, 1)) if isinstance(stop, int) else None
        return jax.lax.fori_loop(start, stop, one_step, local, unroll=unroll)

    def _step(self, loss: work.Loss, batch: PyTree, key: Any, i: Any, local: "_Local") -> "_Local":
        """One step of the inner optimizer."""
        of_step = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, False), batch)
        if key is not None and self._most > 1:
            key = jax.random.fold_in(key, i)
        (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(
            local.params, local.model_state, of_step, key
        )
        updates, inner = self._update(grads, local, value)
        moved = jax.tree.map(jnp.negative, updates) if self.push == "params" else grads
        return _Local(
            params=optax.apply_updates(local.params, updates),
            inner=inner,
            model_state=model_state,
            way=jax.tree.map(lambda total, new: total + new.astype(total.dtype), local.way, moved),
            loss=local.loss + value,
        )

    def _update(self, grads: PyTree, local: "_Local", value: jax.Array) -> tuple[PyTree, PyTree]:
        """What the inner optimizer makes of a gradient; it may ask for the loss."""
        inner_tx = optax.with_extra_args_support(self.inner_tx)
        try:
            return inner_tx.update(grads, local.inner, local.params, value=value)
        except TypeError as error:
            if "needs" in str(error) or "keyword-only" in str(error):
                raise TypeError(
                    "LocalSteps.inner_tx asks for more than gradients, params and value=: a "
                    f"compensation belongs into the tx or the per_push of the run. ({error})"
                ) from error
            raise

    def _merge(self, local: "_Local", pulled: PyTree) -> "_Local":
        """Mixes in the server's params; what of the way so far is kept is a part of the push."""
        mix = lambda mine, w: (self.keep * mine + (1 - self.keep) * w).astype(w.dtype)
        merged = jax.tree.map(mix, local.params, pulled)
        way = local.way
        if self.push == "params":
            way = jax.tree.map(lambda total, w, m: (w - m).astype(total.dtype), way, pulled, merged)
        return local._replace(params=merged, way=way)


class _Local(NamedTuple):
    """Where a worker is on its way."""

    params: PyTree
    inner: PyTree
    model_state: PyTree
    way: PyTree  # what will be pushed, in float32 or wider: negated updates, or gradients
    loss: jax.Array  # sum over the steps
