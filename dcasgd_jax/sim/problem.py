"""What is trained, what a server does with pushes, and what is kept of a run: three values."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

import optax

from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.loggers import Logger
from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree


@document_fields
class Problem(NamedTuple):
    """What is trained: a loss, where it begins, and how it is evaluated.

    Args:
      loss_fn: `loss_fn(params, batch)`, or `loss_fn(params, batch, key)` where a `key` is given;
        returns a scalar. With `model_state`: `loss_fn(params, model_state, batch[, key])` returns
        the scalar and the new model state. Pass the same function object again to reuse the
        compiled program.
      params: Initial parameters; copied, never changed.
      model_state: Mutable state of the model, such as running statistics of batch normalisation.
        Default: it has none.
      eval_fn: `eval_fn(params)`, or `eval_fn(params, model_state)`; returns a tree of arrays. Runs
        inside the compiled loop, at the versions that `sim.Recording` says.
      model_state_policy: "per_worker": each worker keeps its own and evaluation takes the mean of
        those who have pushed (integers: the first of them). "server": workers pull it with the
        params, and the last push that the server uses overwrites it.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=50, seed=0)
      >>> result = sim.simulate(problem, optax.sgd(0.1), schedule, jnp.ones((50, 3)))
      >>> print(jnp.round(result.params, 3))
      [1. 1. 1.]
    """

    loss_fn: Callable[..., Any]
    params: PyTree
    model_state: PyTree | None = None
    eval_fn: Callable[..., PyTree] | None = None
    model_state_policy: Literal["per_worker", "server"] = "per_worker"


@document_fields
class Server(NamedTuple):
    """What a server does besides `tx`; goes wherever a `tx` goes.

    Args:
      tx: Any optax transformation; the same object again reuses the compiled program.
      per_push: A transformation of each push before it is averaged with others (`sim.Buffered`):
        compensate there, because each push has a stale point of its own. It is offered the same
        extra arguments as `tx`, which then gets neither `stale_params` nor `staleness` if the
        averaged pushes read different versions, and no functions.
      send: `send(params, opt_state)`: what workers are given instead of the params when they pull,
        such as a prediction of them (`dc.rivals.sends`); a tree like the params. Gradients are
        taken there, and that is what `stale_params` and "gap" mean by the stale params.
        `opt_state` is all that the server has besides its params: let `tx` keep what `send` needs.
        Pass the same function object again to reuse the compiled program. Evaluations and results
        have the params.
      opt_state: Initial optimizer state, e.g. with other injected hyperparameters. Default:
        `tx.init(params)`.

    Example:
      >>> import dcasgd_jax as dc, jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> schedule = sim.make_schedule(
      ...     sim.GammaTime(), 4, num_updates=40, seed=0, protocol=sim.Buffered(2))
      >>> server = sim.Server(optax.sgd(0.2), per_push=dc.compensate_delay(0.1))
      >>> result = sim.simulate(problem, server, schedule, jnp.ones((len(schedule), 3)))
      >>> print(jnp.round(result.params, 2))
      [1. 1. 1.]
    """

    tx: optax.GradientTransformation
    per_push: optax.GradientTransformation | None = None
    send: Callable[[PyTree, PyTree], PyTree] | None = None
    opt_state: optax.OptState | None = None


@document_fields
class Recording(NamedTuple):
    """What is kept of a run besides the losses.

    Args:
      metrics: Further columns of the trace, of "gap" (root mean square of w - w_stale),
        "compensation_ratio" (|compensation| / |gradient|), "cosine" (of raw and compensated
        gradient), "below_eps" (share of coordinates whose mean square is below eps).
      every: n ≥ 1; keep only every n-th event in the trace, for runs of millions.
      eval_versions: Versions to evaluate the problem's `eval_fn` at: a sequence, or n for every
        n-th and the last. Default: the last.
      logger: Hears of the run while it runs, such as `dc.loggers.JsonLines(path)`: means over
        events, and every evaluation. In a sweep it hears of all members, "member0/loss" and so on;
        `sim.PerMember([...])` gives each one of its own. Of a run that goes on from a checkpoint it
        hears what is new. Default: nobody.
      log_every: n ≥ 1; it hears after every n-th event, and at the end.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import sim
      >>> loss_fn = lambda w, target: jnp.sum((w - target) ** 2)
      >>> problem = sim.Problem(loss_fn, jnp.zeros(3), eval_fn=lambda w: w[0])
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=50, seed=0)
      >>> result = sim.simulate(
      ...     problem, optax.sgd(0.1), schedule, jnp.ones((50, 3)),
      ...     recording=sim.Recording(metrics=["gap"], eval_versions=25))
      >>> result.evaluations.version.tolist(), result.trace.gap.shape
      ([25, 50], (50,))
    """

    metrics: Collection[programs.Metric] = ()
    every: int = 1
    eval_versions: int | Sequence[int] | None = None
    logger: Logger | Any = None
    log_every: int = 100


def as_server(tx: optax.GradientTransformation | Server) -> Server:
    """A bare transformation is a server that does nothing else."""
    return tx if isinstance(tx, Server) else Server(tx)
