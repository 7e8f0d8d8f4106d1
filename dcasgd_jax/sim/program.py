"""What a run is made of: the program that is compiled, its state, its inputs, its reports."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import optax

from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.sim.work import Gradient, OneGradient, Pulled, Worker
from dcasgd_jax.typing import PyTree

# Each push is an update; or some pushes are dropped; or updates take the mean of several pushes.
Flow = Literal["each", "some", "mean"]
# Mutable model state: none, one per worker, or one on the server where the last push wins.
ModelStatePolicy = Literal["none", "per_worker", "server"]
Metric = Literal["gap", "compensation_ratio", "cosine", "below_eps"]
METRICS: tuple[Metric, ...] = get_args(Metric)

__all__ = [
    "METRICS",
    "Event",
    "Flow",
    "Gradient",
    "Kept",
    "Metric",
    "Metrics",
    "ModelStatePolicy",
    "Origin",
    "Program",
    "Pulled",
    "Push",
    "Shared",
    "SimState",
]


class Program(NamedTuple):
    """What is compiled: equal programs share one compilation, also across calls of `simulate`."""

    loss_fn: Callable[..., Any]
    tx: optax.GradientTransformation
    per_push: optax.GradientTransformation | None = None
    batch_fn: Callable[[jax.Array, jax.Array], PyTree] | None = None
    eval_fn: Callable[..., PyTree] | None = None
    send: Callable[[PyTree, PyTree], PyTree] | None = None  # what workers get for the params
    flow: Flow = "each"
    mixes: bool = False  # some updates average pushes that read different versions
    corrupts: bool = False  # some pushes arrive as NaN
    repeats: bool = False  # some pushes arrive twice, and workers keep something of their own
    model_state: ModelStatePolicy = "none"
    metrics: tuple[Metric, ...] = ()
    worker: Worker = OneGradient()


class Kept(NamedTuple):
    """What all workers keep between their pushes, leaf [num_workers, ...]; None for nothing."""

    model_state: PyTree | None  # under the policy "per_worker"
    worker_state: PyTree | None  # `work.WorkerState`


class Origin(NamedTuple):
    """What a state has been through, and what it holds."""

    events: jax.Array  # uint32 [4], a fingerprint of the events done
    versions: jax.Array  # int32 [num_slots], the version in each snapshot slot


@document_fields
class SimState(NamedTuple):
    """Everything a run needs to go on from an event.

    Attributes:
      event: Int32 scalar, events done.
      params: The present parameters.
      opt_state: State of the optimizer.
      snapshots: Leaf [num_slots, ...], the versions that may still be read.
      push_state: Of the per-push transformation.
      gradient_sum: Of the pushes since the last update; None if none is averaged.
      model_state: Like the model's, or leaf [num_workers, ...].
      pushed: Bool [num_workers], who has pushed so far; None unless each has a model state.
      worker_state: Of `worker=`, leaf [num_workers, ...]; None if workers keep nothing.
      last_kept: Leaf [num_workers, ...], with what each worker's last push was computed; None if
        none repeats.
      origin: Of the state of a result; none is carried through the events.
    """

    event: jax.Array
    params: PyTree
    opt_state: PyTree
    snapshots: Pulled
    push_state: PyTree | None
    gradient_sum: PyTree | None
    model_state: PyTree | None
    pushed: jax.Array | None = None
    worker_state: PyTree | None = None
    last_kept: Kept | None = None
    origin: Origin | None = None

    def __repr__(self) -> str:
        """One line: how far it is. Its arrays may be large."""
        return f"SimState({self.event} events done)"


class Event(NamedTuple):
    """One event of the schedule as the step sees it; int32 and bool scalars, None if not needed."""

    event: Any
    worker: Any
    current_slot: Any
    read_slot: Any
    staleness: Any
    batch: Any  # the event whose batch and random key this gradient uses
    applied: Any = None  # whether the server uses this push
    updates: Any = None  # whether the server updates after this push
    num_pushes: Any = None  # pushes that this update averages
    corrupt: Any = None  # whether this push arrives as NaN
    repeats: Any = None  # whether this push is a second delivery, of its worker's last gradient
    evaluates: Any = None  # whether the version after this event is evaluated
    own_push_missing: Any = None  # whether its worker's last push is not in what it pulled


class Shared(NamedTuple):
    """Inputs that all events share."""

    key: jax.Array | None
    examples: PyTree | None  # that the rows of `sim.Indexed` point into


class Push(NamedTuple):
    """What arrives at the server, and what transformations may ask about it."""

    gradient: Gradient
    stale_params: PyTree  # what the worker had been sent, where the gradient was taken
    about_batch: Mapping[str, Any]  # see `work.Worker.about`


class Metrics(NamedTuple):
    """What one event reports; None if it was not asked for, nan where there is nothing."""

    loss: Any
    gap: Any = None  # root mean square of w - w_stale, of what was sent
    compensation_ratio: Any = None
    cosine: Any = None
    below_eps: Any = None
