"""A sweep of members at once against the same members one `simulate` after another."""

import engines
import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import Row, alternate

import dcasgd_jax as dc
from dcasgd_jax import sim

WORKERS = 8


def injected():
    """DC-ASGD-a with its numbers in the state; a new object, so nothing is compiled for it yet."""

    def factory(learning_rate, lambda0):
        return optax.chain(dc.compensate_delay(lambda0), optax.sgd(learning_rate))

    return optax.inject_hyperparams(factory)(learning_rate=0.0, lambda0=0.0)


def rows(
    num_events: int = 8192, num_members: int = 16, batch: int = 32, repeats: int = 3
) -> list[Row]:
    """Members of a multilayer perceptron, in groups that are vectorized."""
    params, batches = engines.mlp_problem(num_events, batch)
    problem = sim.Problem(engines.mlp_loss, params)
    return [_row(problem, batches, num_members, repeats, "64-128-10 MLP")]


def conv_rows(num_events: int = 200, num_members: int = 8, repeats: int = 5) -> list[Row]:
    """Members of convnets, one on each core."""
    made = []
    for batch, width in ((8, 16), (32, 32)):
        params, batches = engines.conv_problem(num_events, batch, width)
        problem = sim.Problem(engines.conv_loss, params)
        what = f"convnet 32x32x3 of width {width}, batch of {batch}"
        made.append(_row(problem, batches, num_members, repeats, what))
    return made


def _row(problem, batches, num_members, repeats, what) -> Row:
    """Gradients per second of all members together, with one compilation on each side."""
    num_events = len(batches[0])
    schedule = sim.make_schedule(sim.GammaTime(), WORKERS, num_events, seed=0)
    numbers = {
        "learning_rate": np.linspace(0.01, 0.2, num_members),
        "lambda0": np.linspace(0.0, 2.0, num_members),
    }

    def together():
        result = sim.sweep(problem, injected(), schedule, batches, hyperparams=numbers)
        jax.block_until_ready(result.params)

    def one_by_one():
        tx = injected()
        for i in range(num_members):
            opt_state = tx.init(problem.params)
            for name, values in numbers.items():
                opt_state.hyperparams[name] = jnp.float32(values[i])
            result = sim.simulate(problem, sim.Server(tx, opt_state=opt_state), schedule, batches)
            jax.block_until_ready(result.params)

    ours_seconds, baseline_seconds = alternate(together, one_by_one, repeats=repeats)
    rate = lambda seconds: f"{num_members * num_events / seconds:,.0f}/s"
    return Row(
        f"sweep of {num_members} members, DC-ASGD-a, {WORKERS} workers, {what}, "
        "gradients/s with compilation vs as many calls of simulate",
        rate(ours_seconds),
        rate(baseline_seconds),
        baseline_seconds / ours_seconds,
        ">= 1.6",
    )
