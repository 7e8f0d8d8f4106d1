"""The table of last gradients: against a loop in NumPy, and what it is for."""

import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from dcasgd_jax import rivals, sim
from rivals import servers

ORDER = [0, 1, 0, 2, 2, 1, 0, 0, 1]


def literal(order, gradient, rate, num_workers, wrong=None):
    """Params after every event, in NumPy; `wrong` names a wrong form."""
    params = servers.PROBLEM.params
    held, table, trace = dict.fromkeys(order, params), {}, [params]
    for event, worker in enumerate(order):
        table[worker] = {n: np.asarray(g) for n, g in gradient(held[worker], event).items()}
        count = num_workers if wrong == "all from the start" else len(table)
        mean = {n: sum(g[n] for g in table.values()) / count for n in params}
        if wrong == "the last push alone":
            mean = table[worker]
        params = {n: w - rate * mean[n] for n, w in params.items()}
        held[worker] = params
        trace.append(params)
    return trace


@pytest.mark.usefixtures("x64")
def test_a_loop_in_numpy_finds_the_same():
    import loops

    gradient = loops.softmax_grad_fn()
    tx = optax.chain(rivals.last_gradients(3), optax.sgd(0.3))
    found, _ = servers.run(tx, ORDER, servers.worker)
    wanted = literal(ORDER, gradient, 0.3, 3)
    np.testing.assert_allclose(oracle.flatten(found), oracle.flatten(wanted), rtol=0, atol=1e-12)
    for wrong in ("all from the start", "the last push alone"):
        mutant = oracle.flatten(literal(ORDER, gradient, 0.3, 3, wrong))
        assert np.abs(mutant - oracle.flatten(wanted)).max() > 1e-3


def test_workers_that_push_seldom_have_the_same_weight():
    """Each worker pulls elsewhere; the fast one pushes nine times as often as the slow one."""
    law = sim.ConstantTime([1.0, 9.0])
    schedule = sim.make_schedule(law, 2, 2000, seed=0)
    target = jnp.array([0.0, 1.0])
    problem = sim.Problem(lambda w, worker: 0.5 * (w - target[worker]) ** 2, jnp.zeros(()))
    found = {
        name: float(
            sim.simulate(
                problem, tx, schedule, lambda event, worker: worker
            ).params
        )
        for name, tx in {
            "plain": optax.sgd(0.01),
            "table": optax.chain(rivals.last_gradients(2), optax.sgd(0.01)),
        }.items()
    }  # fmt: skip
    assert found["table"] == pytest.approx(0.5, abs=0.02)
    assert found["plain"] == pytest.approx(0.1, abs=0.02)
