"""The optimizers with exchangeable numbers are the ones that a user would write down."""

import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcasgd_jax as dc
from dcasgd_jax.commands import methods

NUM_UPDATES = 12
RATE, LAMBDA0 = 0.4, 3.0
# A tenth of the updates is one: the warm-up is over at once.
FACTORS = jnp.array([1.0] * 6 + [0.1] * 3 + [0.01] * 3)


def written_down(name, lambda0=LAMBDA0):
    rate = lambda count: RATE * FACTORS[count]
    compensation = {
        "dcasgd-c": lambda: [compensations.explicit(lambda0)],
        "dcasgd-a": lambda: [compensations.explicit(lambda0, ms_decay=0.95)],
        "dcasgd-capped": lambda: [
            compensations.explicit(lambda0, ms_decay=0.95, max_pull=1, learning_rate=rate)
        ],
        "rotated": lambda: [
            dc.compensate_delay(
                lambda0, curvature=dc.curvatures.rotated(), max_pull=1.0, learning_rate=rate
            )
        ],
    }
    return optax.chain(*compensation.get(name, list)(), optax.sgd(rate))


def trajectory(tx, state):
    """Params after each of a dozen updates with made-up stale gradients."""
    tx = optax.with_extra_args_support(tx)
    params = {"w": jnp.linspace(-1, 1, 5)}
    path = []
    for k in range(NUM_UPDATES):
        grads = {"w": jnp.sin(jnp.arange(5.0) + k)}
        stale = {"w": params["w"] + 0.3 * jnp.cos(jnp.arange(5.0) * (k + 1))}
        offered = {"stale_params": stale, "batch_size": 16}
        updates, state = tx.update(grads, state, params, **offered)
        params = optax.apply_updates(params, updates)
        path.append(params["w"])
    return np.stack(path)


def injected(name, learning_rate=RATE, lambda0=LAMBDA0):
    tx = methods.make_tx(methods.METHODS[name], NUM_UPDATES)
    params = {"w": jnp.linspace(-1, 1, 5)}
    numbers = methods.Hyperparameters(
        learning_rate, lambda0 if methods.METHODS[name].compensates else None
    )
    return trajectory(tx, methods.init_opt_state(tx, params, numbers))


def direct(name, **kwargs):
    tx = written_down(name, **kwargs)
    return trajectory(tx, tx.init({"w": jnp.linspace(-1, 1, 5)}))


@pytest.mark.parametrize("name", methods.METHODS)
def test_injected_numbers_make_the_chain_that_is_written_down(name):
    np.testing.assert_allclose(injected(name), direct(name), rtol=2e-6, atol=2e-6)


def test_the_methods_differ_in_this_test():
    ends = [
        injected(name)[-1] for name in ("sgd", "dcasgd-c", "dcasgd-a", "dcasgd-capped", "rotated")
    ]
    for i, end in enumerate(ends):
        for other in ends[:i]:
            assert np.abs(end - other).max() > 1e-3


def test_the_cap_follows_the_decayed_rate():
    # With a huge λ0 the cap binds on every coordinate: g + (w - w_stale) / rate, so that the step
    # leaves the stale weight minus rate * g, whatever the decay.
    tx = methods.make_tx(methods.METHODS["dcasgd-capped"], NUM_UPDATES)
    state = methods.init_opt_state(tx, jnp.zeros(3), methods.Hyperparameters(RATE, 1e20))
    params, stale, grads = jnp.asarray([1.0, 2, 3]), jnp.asarray([0.5, 2.5, 1]), jnp.ones(3)
    for rate in [RATE] * 6 + [RATE / 10] * 3 + [RATE / 100] * 3:
        updates, state = tx.update(grads, state, params, stale_params=stale)
        np.testing.assert_allclose(params + updates, stale - rate * grads, rtol=1e-5)


@pytest.mark.parametrize("name", methods.METHODS)
def test_one_optimizer_object_for_all_numbers(name):
    method = methods.METHODS[name]
    assert methods.make_tx(method, 20) is methods.make_tx(method, 20)
    tx = methods.make_tx(method, 20)
    states = [
        methods.init_opt_state(tx, jnp.zeros(3), methods.Hyperparameters(*numbers))
        for numbers in ((0.1, None), (1, 2))
    ]
    shapes = [jax.tree.map(jax.typeof, state) for state in states]
    assert shapes[0] == shapes[1]


def test_the_rate_grows_in_a_tenth_of_the_updates_and_falls_twice():
    factor = methods.rate_factor(40)
    found = [float(factor(count)) for count in (0, 1, 2, 3, 4, 19, 20, 29, 30, 39)]
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
