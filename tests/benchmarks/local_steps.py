"""Local steps in the simulator, against the nested loop that somebody would write for them."""

import engines
import jax
import jax.numpy as jnp
import optax
from timing import Row, alternate

from dcasgd_jax import sim

WORKERS, STEPS = 8, 32


def rows(num_pushes: int = 256, steps: int = STEPS, batch: int = 32, repeats: int = 7) -> list[Row]:
    """A whole second call of `simulate`, with momentum inside, against a scan in a scan."""
    params, flat = engines.mlp_problem(num_pushes * steps, batch)
    batches = jax.tree.map(
        lambda leaf: jnp.asarray(leaf.reshape(num_pushes, steps, *leaf.shape[1:])), flat
    )
    schedule = sim.make_schedule(sim.GammaTime(), WORKERS, num_pushes, seed=0)
    problem = sim.Problem(engines.mlp_loss, params)
    inner, outer = optax.sgd(0.05, momentum=0.9), optax.sgd(0.7, momentum=0.9, nesterov=True)
    worker = sim.LocalSteps(inner, steps)

    def ours():
        result = sim.simulate(problem, outer, schedule, batches, worker=worker)
        jax.block_until_ready(result.params)

    nested = jax.jit(lambda *inputs: by_hand(inner, outer, *inputs))
    events = jnp.asarray(schedule.worker)

    def plain():
        jax.block_until_ready(nested(params, events, batches))

    seconds, baseline = alternate(ours, plain, repeats=repeats)
    rate = lambda taken: f"{num_pushes * steps / taken:,.0f}/s"
    what = f"local steps, {steps} of momentum SGD, {WORKERS} workers, 64-128-10 MLP, gradients/s"
    what = f"{what} vs a hand-written scan in a scan"
    return [Row(what, rate(seconds), rate(baseline), baseline / seconds, ">= 0.9")]


def by_hand(inner, outer, params, events, batches):
    """Asynchronous DiLoCo: each worker pulls right after its push."""
    copies = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * WORKERS), tree)
    row = lambda tree, m: jax.tree.map(lambda leaf: leaf[m], tree)
    put = lambda tree, m, new: jax.tree.map(lambda leaf, x: leaf.at[m].set(x), tree, new)

    def local_step(carry, batch):
        here, state = carry
        loss, grads = jax.value_and_grad(engines.mlp_loss)(here, batch)
        updates, state = inner.update(grads, state, here)
        return (optax.apply_updates(here, updates), state), loss

    def push(carry, inputs):
        server, outer_state, pulled, inner_states = carry
        m, of_steps = inputs
        start = row(pulled, m)
        (here, state), losses = jax.lax.scan(local_step, (start, row(inner_states, m)), of_steps)
        way = jax.tree.map(jnp.subtract, start, here)
        updates, outer_state = outer.update(way, outer_state, server)
        server = optax.apply_updates(server, updates)
        carry = server, outer_state, put(pulled, m, server), put(inner_states, m, state)
        return carry, losses.mean()

    begin = params, outer.init(params), copies(params), copies(inner.init(params))
    (server, *_), losses = jax.lax.scan(push, begin, (events, batches))
    return server, losses
