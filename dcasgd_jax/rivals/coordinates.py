"""Accelerated descent one coordinate at a time, with momentum compensation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import checks, trees, update_checks
from dcasgd_jax.field_docs import document_fields
from dcasgd_jax.rivals import prediction, sending
from dcasgd_jax.typing import PyTree


@document_fields
class AccelerateCoordinatesState(NamedTuple):
    """State of `accelerate_coordinates`.

    Attributes:
      num_updates: Int32 scalar.
      theta: Float scalar: θ of the next update.
      lead: Like params, at least float32: z - x.
    """

    num_updates: chex.Array
    theta: chex.Array
    lead: PyTree


def accelerate_coordinates(
    seed: int = 0, *, choose: Callable[[jax.Array], Any] | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Nesterov's acceleration of random coordinate descent; comes last in a chain.

    .. math::
        y &= x + \theta (z - x), \qquad z_j \leftarrow z_j + \frac{u_j}{n \theta}, \qquad
        x \leftarrow y + u_j e_j \\
        & \text{then } \theta \leftarrow \text{the positive root of } t^2 = (1 - t) \theta^2,
        \qquad \theta_0 = 1 / n

    where u are the updates that come in, :math:`-\eta g`, of which only coordinate j counts; n is
    the number of all elements of the parameters. The params are x. The gradient belongs at y,
    which workers are given by `send=rivals.sends.coordinate_compensation(delay)`. With one element
    it is Nesterov's accelerated gradient. For convex problems: θ never grows again.

    Args:
      seed: Integer ≥ 0; draws j, uniformly.
      choose: Instead, a function from the number of updates so far to j in [0, n), the elements
        counted through the leaves in the order of `jax.tree.leaves`.

    Returns:
      A transformation with `update(updates, state, params=None)`. Unknown extra arguments are
      ignored.

    Raises:
      ValueError: For a seed that is no integer ≥ 0.

    Source: Fang, Huang and Lin, *Accelerating Asynchronous Algorithms for Convex Optimization by
    Momentum Compensation*, AAAI 2018 (AASCD); the sequences as in Fercoq and Richtárik,
    *Accelerated, Parallel and Proximal Coordinate Descent*, SIAM J. Optim. 2015.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals
      >>> tx = optax.chain(
      ...     optax.scale_by_learning_rate(0.5), rivals.accelerate_coordinates(choose=lambda k: k))
      >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
      >>> print(updates, state[1].lead)  # n θ = 1 at first
      [-0.5  0. ] [0. 0.]
    """
    seed = checks.check_count("seed", seed, least=0)
    if choose is not None and not callable(choose):
        raise ValueError(f"choose must be a function of the number of updates, got {choose!r}.")

    def init_fn(params: PyTree) -> Any:
        lead = trees.zeros_to_accumulate(params)
        theta = 1 / max(_num_elements(lead), 1)
        return AccelerateCoordinatesState(jnp.zeros((), jnp.int32), jnp.asarray(theta, float), lead)

    def update_fn(updates, state, params=None, *positional, **extra_args) -> Any:
        update_checks.check_keywords_only(positional)
        del params, extra_args
        count, theta = state.num_updates, state.theta
        n = _num_elements(state.lead)
        if choose is None:
            key = jax.random.fold_in(jax.random.key(seed), count)
            chosen = jax.random.randint(key, (), 0, n)
        else:
            chosen = jnp.asarray(choose(count), jnp.int32)
        picked = _is_chosen(state.lead, chosen)
        step = lambda u, lead, here: theta.astype(u.dtype) * lead + jnp.where(here, u, 0)
        directions = trees.map_updates(step, updates, state.lead, picked)
        # z moves by 1/(n θ) of what x moves by.
        ahead = trees.map_updates(
            lambda u, here: jnp.where(here, u, 0) * (1 / (n * theta) - 1).astype(u.dtype),
            updates,
            picked,
        )
        stays = lambda lead, a: (1 - theta).astype(lead.dtype) * lead + a
        return directions, AccelerateCoordinatesState(
            jnp.asarray(optax.safe_increment(count)),
            _next(theta),
            trees.map_accumulators(stays, state.lead, ahead),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def coordinate_compensation(delay: int) -> prediction.Send:
    r"""Sends where the momentum alone will have carried y when the gradient arrives.

    .. math:: \hat w = x_j + \Big(1 - \prod_{i=j}^{j+\tau} (1 - \theta_i)\Big) (z_j - x_j)

    The recursion of `accelerate_coordinates` rolled forward with zero gradients. Delay 0 is y.

    Args:
      delay: τ ≥ 0, server updates between the pull and the arrival of its gradient; with M workers
        in turn M - 1.

    Returns:
      `send(params, opt_state)` for `sim.simulate`.

    Raises:
      ValueError: For a delay that is no integer ≥ 0, or (at the first call) a `tx` without
        `accelerate_coordinates`.

    Source: Fang, Huang and Lin, AAAI 2018 (AASCD).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from dcasgd_jax import rivals, sim
      >>> schedule = sim.make_schedule(sim.RoundRobin(), 4, num_updates=400, seed=0)
      >>> tx = optax.chain(optax.scale_by_learning_rate(0.1), rivals.accelerate_coordinates())
      >>> problem = sim.Problem(lambda w, target: jnp.sum((w - target) ** 2), jnp.zeros(3))
      >>> server = sim.Server(tx, send=rivals.sends.coordinate_compensation(delay=3))
      >>> result = sim.simulate(problem, server, schedule, jnp.ones((400, 3)))
      >>> print(jnp.round(result.params, 1))
      [1. 1. 1.]
    """
    delay = checks.check_count("delay", delay, least=0)

    def send(params, opt_state):
        whose = "coordinate_compensation"
        state = sending.find_state(opt_state, [AccelerateCoordinatesState], whose)
        theta, left = state.theta, 1.0
        for _ in range(delay + 1):
            left = left * (1 - theta)
            theta = _next(theta)
        return sending.move(params, state.lead, 1 - left, whose)

    return send


def _next(theta: jax.Array) -> jax.Array:
    return theta * (jnp.sqrt(theta**2 + 4) - theta) / 2


def _num_elements(tree: PyTree) -> int:
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(tree))


def _is_chosen(tree: PyTree, chosen: jax.Array) -> PyTree:
    """True at one element of one leaf, counted through the leaves."""
    found, first = [], 0
    for leaf in jax.tree.leaves(tree):
        size = int(np.prod(leaf.shape))
        found.append((jnp.arange(first, first + size) == chosen).reshape(leaf.shape))
        first += size
    return jax.tree.unflatten(jax.tree.structure(tree), found)
