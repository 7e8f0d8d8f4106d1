"""What optax asks of a contributed optimizer: minimise its four functions, in a scan.

Its other demands (extra arguments, one trace, `map_params`, `inject_hyperparams`) are in
test_citizenship, for every transformation.
"""

import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcasgd_jax as dc
from dcasgd_jax import rivals

RATE, STEPS = 1e-3, 30_000
CAP = {"max_pull": 1.0, "learning_rate": RATE}
sgd = lambda: optax.sgd(RATE)
OPTIMIZERS = {
    "dcasgd": dc.dcasgd(RATE, 2, max_pull=1.0),
    "dcasgd with momentum": dc.dcasgd(RATE, 2, momentum=0.9, nesterov=True, lambda0=0.1),
    "pulled outside momentum": dc.dcasgd(RATE, 2, momentum=0.9, nesterov=True, max_pull=1.0),
    "squared gradient": dc.remember_pulls(
        optax.chain(compensations.explicit(0.04, **CAP), sgd()), 2
    ),
    "absolute before adam": dc.assume_delay(
        optax.chain(dc.compensate_delay(1.0, curvature=dc.curvatures.absolute()), optax.adam(1e-2)),
        1,
    ),
    "late gradients": dc.delay_gradients(optax.chain(dc.compensate_delay(1.0, **CAP), sgd()), 1),
    "ratio": dc.remember_pulls(optax.chain(dc.compensate_delay(dc.strengths.ratio(0.1)), sgd()), 2),
    "dana": dc.remember_pulls(rivals.dana(RATE, 0.5, 2, lambda0=2.0, max_pull=1.0).tx, 2),
}


def square(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def parabola(start, end):
    difference = lambda params: square(jax.tree.map(jnp.subtract, params, end))
    return start, end, difference


FUNCTIONS = {
    "parabola": parabola(jnp.asarray([-1.0, 10.0, 1.0]), jnp.asarray([1.0, -1.0, 1.0])),
    "rosenbrock": (
        jnp.zeros(2),
        jnp.ones(2),
        lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2,
    ),
    "matrix": parabola(jnp.zeros((2, 2)), jnp.asarray([[3.0, -2.0], [1.0, 4.0]])),
    "mixed": parabola(
        (jnp.zeros(3), jnp.zeros((2, 2))),
        (jnp.asarray([1.0, -1.0, 2.0]), jnp.asarray([[1.0, 0.0], [-1.0, 1.0]])),
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_converges(name, function):
    tx, (params, end, loss) = OPTIMIZERS[name], FUNCTIONS[function]
    state = optax.tree.map_params(tx, lambda leaf: leaf, tx.init(params))

    def step(carry, number):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, worker=number % 2)
        return (optax.apply_updates(params, updates), state), None

    numbers = jnp.arange(STEPS, dtype=jnp.int32)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, numbers))((params, state))
    for leaf, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=3e-2, atol=3e-2)  # as in optax
