"""Finds a compensation that stands in the wrong place of a chain, by trying the chain out.

A compensation must see the raw gradient. A server knows that gradient, so before a run it pushes
made-up ones and looks at what arrives. Compiled programs stay as they are.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
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
LARGEST = 50_000_000  # coordinates: a larger model is not tried out, which would take its memory
_BLOCK = 4099  # numbers that are drawn, and repeated in larger leaves


class _Leaf(NamedTuple):
    """How one leaf of a gradient arrived."""

    product: Any  # of the arrived and the raw gradient
    smallest: Any  # of the ratios of the arrived to the raw coordinates
    smallest_kept: Any  # but those that are 0
    largest: Any
    rounding: Any  # relative, of the narrower of the two


class _Arrived(NamedTuple):
    """One arrival at a compensation, on the host."""

    leaves: dict[str, _Leaf]
    steepest: dict[str, tuple[int, float]]  # coordinate with the largest term, and that term
    max_pull: float  # nan if there is no cap
    max_curvature: float


class Trial(NamedTuple):
    """What came of the made-up pushes."""

    against: bool  # a gradient arrived with the wrong sign
    changed: bool  # one arrived that is neither the raw one nor a rescaling, clipping or mask of it
    pulled: tuple[float, float, float] | None  # max_pull, what it was told and what is applied


def check_server(
    params: PyTree,
    tx: optax.GradientTransformation,
    opt_state: PyTree | None,
    per_push: optax.GradientTransformation | None,
    push_state: PyTree | None = None,
) -> None:
    """`check` of a server's chain, and of what it does to each push with that chain behind it.

    A state that is None is that of `init`.
    """
    check(tx, params, opt_state)
    if per_push is None or _is_large(params):
        return
    if not trees.find_states(
        jax.eval_shape(per_push.init, params), transforms.CompensateDelayState
    ):
        return
    states = None
    if opt_state is not None or push_state is not None:
        given = lambda tx, state: tx.init(params) if state is None else state
        states = (given(per_push, push_state), given(tx, opt_state))
    check(_one_after_the_other(per_push, tx), params, states)


@functools.lru_cache(maxsize=256)
def _one_after_the_other(per_push, tx) -> optax.GradientTransformation:
    """One object each time, so that what was tried out is remembered."""
    return optax.chain(per_push, tx)


def check(tx: optax.GradientTransformation, params: PyTree, opt_state: PyTree | None) -> None:
    """Tries out where the compensations of a chain stand, and whether their cap fits.

    Args:
      tx: What is given raw gradients.
      params: Arrays, or their shapes and dtypes.
      opt_state: The state that the run starts from; None for that of `tx.init`, which is also used
        where other processes have a part of it.

    Raises:
      ValueError: If a compensation stands behind the learning rate, or a first update goes further
        back than its cap permits where the cap binds.

    Warns:
      UserWarning: If something before a compensation changes the gradient.
    """
    if _is_large(params):
        return
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
    if opt_state is None or not all(map(_is_here, jax.tree.leaves(opt_state))):
        trial = _trial_from_init(tx, structure, shapes)
    elif trees.find_states(opt_state, transforms.CompensateDelayState):
        trial = _try_out(tx, _make_params(structure, shapes), opt_state)
    else:
        trial = None
    if trial is None:
        return
    if trial.against:
        raise ValueError(
            "What reaches the compensation points against the gradient: it stands behind the "
            f"learning rate, where its compensation has the wrong sign and size. {ORDER} (To "
            "maximise, negate the loss.)"
        )
    if trial.pulled is not None:
        max_pull, told, applied = trial.pulled
        raise ValueError(
            f"The cap max_pull={max_pull:g} was told learning_rate={told:g}, but the chain applies "
            f"{applied:g}: where the cap binds, an update goes {max_pull * applied / told:g} of "
            "the way back. "
            "Pass the compensation the learning rate of the chain, with a momentum μ that of "
            "learning_rate / (1 - μ)."
        )
    if trial.changed:
        warnings.warn(
            "What reaches the compensation is not the gradient, nor a scaled, clipped or masked "
            f"one: something before it changes its direction. {ORDER}",
            stacklevel=5,
        )


def _is_large(params: PyTree) -> bool:
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params)) > LARGEST


def _is_here(leaf: Any) -> bool:
    """Whether this process has all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


@functools.lru_cache(maxsize=256)
def _trial_from_init(tx, structure, shapes) -> Trial | None:
    """None if nothing compensates."""
    params = structure.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in shapes])
    state = jax.eval_shape(tx.init, params)
    if not trees.find_states(state, transforms.CompensateDelayState):
        return None
    params = _make_params(structure, shapes)
    return _try_out(tx, params, tx.init(params))


def _make_params(structure: Any, shapes: Sequence[tuple]) -> PyTree:
    return structure.unflatten([jnp.ones(shape, dtype) for shape, dtype in shapes])


def _try_out(tx, params: PyTree, opt_state: PyTree) -> Trial:
    first = _draw(params, 0)
    # Every coordinate goes on in its direction, by a factor of its own: a mean of both shows.
    second = jax.tree.map(lambda f, s: f * jnp.abs(s), first, _draw(params, 1))
    arrivals, state = [], opt_state
    for raw in (first, second):
        _, state, arrived = _push(tx, raw, state, params, params)
        arrivals += arrived
    kinds = [_kind(arrived) for arrived in arrivals]
    capped = any(arrived.max_pull < math.inf for arrived in arrivals)
    return Trial(
        against=-1 in kinds,
        changed=0 in kinds,
        pulled=_find_long_pull(tx, opt_state, params) if capped else None,
    )


def _draw(params: PyTree, seed: int) -> PyTree:
    """Numbers of both signs and of many sizes around 1."""
    generator = np.random.default_rng(seed)

    def draw(leaf):
        decades = 2 if jnp.finfo(leaf.dtype).bits > 16 else 1  # float16 ends at 65504
        count = min(leaf.size, _BLOCK)
        sizes = 10.0 ** generator.uniform(-decades, decades, count)
        block = (sizes * generator.choice([-1.0, 1.0], count)).astype(leaf.dtype)
        return jnp.asarray(np.resize(block, leaf.shape))

    return jax.tree.map(draw, params)


def _push(tx, raw, opt_state, params, stale_params) -> tuple[PyTree, PyTree, list[_Arrived]]:
    """The updates and the state after a push of worker 0, and what arrived at compensations."""
    found: list[_Arrived] = []
    of_raw = _by_path(raw)

    def observe(arrival: transforms.Arrival) -> None:
        # A chain that takes trees apart (optax.flatten) shows nothing.
        shown = {
            path: leaf
            for path, leaf in _by_path(arrival.grads).items()
            if path in of_raw and of_raw[path].shape == leaf.shape and leaf.size
        }
        terms = {path: leaf for path, leaf in _by_path(arrival.term).items() if path in shown}
        caps = (arrival.max_pull, arrival.max_curvature)
        caps = tuple(math.nan if value is None else value for value in caps)
        jax.debug.callback(note, shown, terms, *caps)

    def note(shown, terms, *caps) -> None:
        # In NumPy: of many leaves, compiling and starting small programs takes seconds.
        leaves = {path: _look(of_raw[path], leaf) for path, leaf in shown.items()}
        steep = {path: _steepest(leaf) for path, leaf in terms.items()}
        found.append(_Arrived(leaves, steep, *map(float, caps)))

    about_batch = {
        "hessian_vector_product": lambda tangent: tangent,
        "fisher_diagonal": lambda: jax.tree.map(jnp.square, raw),
        "batch_size": 1,
    }
    offered = offers.arguments(jnp.int32(0), stale_params, jnp.int32(0), about_batch)
    updates, state = offers.update(tx, raw, opt_state, params, observe=observe, **offered)
    jax.effects_barrier()
    return updates, state, found


def _by_path(tree: PyTree) -> dict[str, jax.Array]:
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in pairs}


def _look(before: chex.Array, after: chex.Array) -> _Leaf:
    precision = max(float(jnp.finfo(leaf.dtype).eps) for leaf in (before, after))
    raw, arrived = np.asarray(before, np.float64), np.asarray(after, np.float64)
    with np.errstate(all="ignore"):
        ratios = arrived / raw
        product = float(np.sum(arrived * raw))
    smallest_kept = float(np.min(ratios, where=ratios > 0, initial=np.inf))
    return _Leaf(product, float(ratios.min()), smallest_kept, float(ratios.max()), 16 * precision)


def _steepest(term: chex.Array) -> tuple[int, float]:
    flat = np.asarray(term, np.float64).ravel()
    where = int(np.argmax(np.abs(flat)))
    return where, float(flat[where])


def _kind(arrived: _Arrived) -> int:
    """1: as it was, but for a scale, clipping or a mask; 0: something else; -1: turned round."""
    if sum(leaf.product for leaf in arrived.leaves.values()) < 0:
        return -1
    return int(all(map(_is_rescaled, arrived.leaves.values())))


def _is_rescaled(leaf: _Leaf) -> bool:
    """Whether each coordinate became none, all of one multiple, or less of itself than it was."""
    slack = 1 + leaf.rounding
    nothing_is_kept = math.isinf(leaf.smallest_kept)
    uniform = nothing_is_kept or leaf.largest <= slack * leaf.smallest_kept
    return leaf.smallest >= 0 and (leaf.largest <= slack or uniform)


def _find_long_pull(tx, opt_state, params) -> tuple[float, float, float] | None:
    """The first cap of a smaller rate than the chain's: max_pull, that rate, the one applied.

    The rate is how much further a first step goes for its compensation, by that compensation.
    """
    grads = jax.tree.map(jnp.ones_like, params)
    stale_params = jax.tree.map(lambda p: (p - 1).astype(p.dtype), params)
    pulled, _, arrived = _push(tx, grads, opt_state, params, stale_params)
    plain, _, _ = _push(tx, grads, opt_state, params, params)
    steps, plain_steps = _by_path(pulled), _by_path(plain)
    for one in arrived:
        if not (one.max_pull < math.inf and 0 < one.max_curvature < math.inf):
            continue
        told = one.max_pull / one.max_curvature
        for path, (where, term) in one.steepest.items():
            if path not in steps or not 0 < abs(term) < math.inf:
                continue
            step, without = (float(s[path].reshape(-1)[where]) for s in (steps, plain_steps))
            rounding = 16 * float(jnp.finfo(steps[path].dtype).eps) * max(abs(step), abs(without))
            applied = abs(step - without) / abs(term)
            if 1.01 * told < applied - rounding / abs(term) < math.inf:
                return one.max_pull, told, applied
    return None
