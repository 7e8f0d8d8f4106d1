"""Finds a compensation that stands in the wrong place of a chain, by trying the chain out.

A compensation must see the raw gradient. A server knows that gradient, so before a run it pushes
made-up ones and looks at what arrives. Compiled programs stay as they are.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dcasgd_jax import transforms, trees
from dcasgd_jax.sim import offers
from dcasgd_jax.typing import PyTree

ORDER = (
    "The order is optax.chain(clipping, dc.compensate_delay(...), weight decay, momentum or Adam, "
    "learning rate)."
)
LARGEST = 100_000_000  # coordinates: a larger model is not tried out, which would take its memory
_SATURATING = 1e3  # a gradient whose compensation is at the cap, if there is a cap

Path = Any


class _Arrived(NamedTuple):
    """One arrival of one push, on the host."""

    grads: dict[Path, np.ndarray]  # those that are there, float64
    max_pull: float  # nan if there is no cap
    max_curvature: float


class Trial(NamedTuple):
    """What came of the made-up pushes."""

    against: bool  # a gradient arrived with the wrong sign
    changed: bool  # one arrived that is neither the raw one nor a rescaling, clipping or mask of it
    pulled: tuple[float, float, float] | None  # max_pull, what it was told and what is applied


def check(tx: optax.GradientTransformation, params: PyTree, opt_state: PyTree | None) -> None:
    """Tries out where the compensations of a chain stand, and whether their cap fits.

    Args:
      tx: What is given raw gradients.
      params: Arrays, or their shapes and dtypes.
      opt_state: The state that the run starts from; None for that of `tx.init`, which is also used
        where other processes have a part of it.

    Raises:
      ValueError: If a compensation stands behind the learning rate, or a first update goes further
        back than its cap permits.

    Warns:
      UserWarning: If something before a compensation changes the gradient.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
    if sum(math.prod(shape) for shape, _ in shapes) > LARGEST:
        return
    if opt_state is None or not all(map(_is_here, jax.tree.leaves(opt_state))):
        trial = _trial_from_init(tx, structure, shapes)
    else:
        trial = _try_out(tx, _make_params(structure, shapes), opt_state)
    if trial.against:
        raise ValueError(
            "What reaches dc.compensate_delay points against the gradient: it stands behind the "
            f"learning rate, where its compensation has the wrong sign and size. {ORDER}"
        )
    if trial.pulled is not None:
        max_pull, told, applied = trial.pulled
        raise ValueError(
            f"The cap max_pull={max_pull:g} was told learning_rate={told:g}, but the chain applies "
            f"{applied:g}: its first update goes {max_pull * applied / told:g} of the way back. "
            "Pass dc.compensate_delay the learning rate of the chain, with a momentum μ that of "
            "learning_rate / (1 - μ)."
        )
    if trial.changed:
        warnings.warn(
            "What reaches dc.compensate_delay is not the gradient, nor a scaled, clipped or masked "
            f"one: something before it changes its direction. {ORDER}",
            stacklevel=4,
        )


def _is_here(leaf: Any) -> bool:
    """Whether this process has all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


@functools.lru_cache(maxsize=256)
def _trial_from_init(tx, structure, shapes) -> Trial:
    params = _make_params(structure, shapes)
    return _try_out(tx, params, tx.init(params))


def _make_params(structure: Any, shapes: Sequence[tuple]) -> PyTree:
    return structure.unflatten([jnp.ones(shape, dtype) for shape, dtype in shapes])


def _try_out(tx, params: PyTree, opt_state: PyTree) -> Trial:
    if not trees.find_states(opt_state, transforms.CompensateDelayState):
        return Trial(False, False, None)
    first = _draw(params, 0)
    # Every coordinate goes on in its direction, by a factor of its own: a mean of both shows.
    second = jax.tree.map(lambda f, s: f * jnp.abs(s), first, _draw(params, 1))
    arrivals, state = [], opt_state
    for raw in (first, second):
        _, state, arrived = _push(tx, raw, state, params, params)
        arrivals += [(raw, each) for each in arrived]
    kinds = [_compare(raw, arrived) for raw, arrived in arrivals]
    capped = any(arrived.max_pull < math.inf for _, arrived in arrivals)
    return Trial(
        against=-1 in kinds,
        changed=0 in kinds,
        pulled=_find_long_pull(tx, opt_state, params) if capped else None,
    )


def _draw(params: PyTree, seed: int) -> PyTree:
    """Numbers of both signs and of sizes between 0.01 and 100."""
    generator = np.random.default_rng(seed)

    def draw(leaf):
        sizes = 10.0 ** generator.uniform(-2, 2, leaf.shape)
        return jnp.asarray(sizes * generator.choice([-1.0, 1.0], leaf.shape), leaf.dtype)

    return jax.tree.map(draw, params)


def _push(tx, grads, opt_state, params, stale_params) -> tuple[PyTree, PyTree, list[_Arrived]]:
    """The updates and the state after a push of worker 0, and what arrived at compensations."""
    found: list[_Arrived] = []

    def observe(arrival: transforms.Arrival) -> None:
        jax.debug.callback(lambda arrived: found.append(_on_host(arrived)), arrival)

    curvatures = {
        "hessian_vector_product": lambda tangent: tangent,
        "fisher_diagonal": lambda: jax.tree.map(jnp.square, grads),
    }
    offered = offers.arguments(jnp.int32(0), stale_params, jnp.int32(1), curvatures)
    updates, state = offers.update(tx, grads, opt_state, params, observe=observe, **offered)
    jax.effects_barrier()
    return updates, state, found


def _on_host(arrival: transforms.Arrival) -> _Arrived:
    number = lambda value: math.nan if value is None else float(value)
    return _Arrived(
        _by_path(arrival.grads), number(arrival.max_pull), number(arrival.max_curvature)
    )


def _by_path(tree: PyTree) -> dict[Path, np.ndarray]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {path: np.asarray(leaf, np.float64) for path, leaf in pairs}


def _compare(raw: PyTree, arrived: _Arrived) -> int:
    """1: as it was, but for a scale, clipping or a mask; 0: something else; -1: turned round."""
    of_raw = _by_path(raw)
    # A chain that takes trees apart (optax.flatten) shows nothing.
    pairs = [(of_raw[path], g) for path, g in arrived.grads.items() if path in of_raw]
    pairs = [(before, after) for before, after in pairs if before.shape == after.shape]
    if sum(float(np.sum(before * after)) for before, after in pairs) < 0:
        return -1
    return int(all(_is_rescaled(before, after) for before, after in pairs))


def _is_rescaled(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether each coordinate became none, all of one multiple, or less of itself than it was."""
    with np.errstate(all="ignore"):
        ratios = (after / before)[before != 0]
    rounding = 0.02  # of 16 bits
    if not np.all(np.isfinite(ratios)) or np.any(ratios < 0):
        return False
    smaller = np.all(ratios <= 1 + rounding)
    kept = ratios[ratios > 0]
    uniform = not kept.size or kept.max() <= (1 + rounding) * kept.min()
    return bool(smaller or uniform)


def _find_long_pull(tx, opt_state, params) -> tuple[float, float, float] | None:
    """The first cap that is exceeded: max_pull, the learning rate it was told, the one applied."""
    grads = jax.tree.map(lambda p: jnp.full_like(p, _SATURATING), params)
    stale_params = jax.tree.map(lambda p: (p - 1).astype(p.dtype), params)
    pulled, _, arrived = _push(tx, grads, opt_state, params, stale_params)
    plain, _, _ = _push(tx, grads, opt_state, params, params)
    steps, plain_steps = _by_path(pulled), _by_path(plain)
    for one in arrived:
        moved = [steps[path] - plain_steps[path] for path in one.grads if path in steps]
        back = max((float(np.abs(m).max()) for m in moved if m.size), default=0.0)
        if one.max_pull * 1.01 < back < math.inf and one.max_curvature > 0:
            return one.max_pull, one.max_pull / one.max_curvature, back / one.max_curvature
    return None
