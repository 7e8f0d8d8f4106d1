"""Delays of pipeline stages: the rule, what it does to training, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from loops import run_plain

import dcasgd_jax as dc

PARAMS = {"blocks": [{"w": jnp.ones(2)}, {"w": jnp.ones(2)}], "head": jnp.ones(1)}


def stage_of(path):
    return 2 if path == "head" else int(path.split("/")[1])


def test_the_last_stage_is_never_stale():
    delays = dc.pipeline_delays(stage_of, 3)(PARAMS)
    assert delays == {"blocks": [{"w": 2}, {"w": 1}], "head": 0}


def test_one_stage_is_the_inner_optimizer():
    delays = dc.pipeline_delays(lambda path: 0, 1)
    grad_fn = lambda params, step: jax.tree.map(lambda w: w * (1 + step), params)
    stale, _ = run_plain(dc.delay_gradients(optax.adam(0.1), delays), PARAMS, 5, grad_fn)
    plain, _ = run_plain(optax.with_extra_args_support(optax.adam(0.1)), PARAMS, 5, grad_fn)
    for one, other in zip(jax.tree.leaves(stale), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_per_leaf_reference_run(x64):
    """`per_leaf_fifo` of the reference: W is 3 updates late, b is not; nothing moves before."""
    problem = oracle.Problem()
    delays = dc.pipeline_delays(lambda path: {"W": 0, "b": 3}[path], 4)
    tx = dc.delay_gradients(optax.sgd(0.5), delays)
    trace, _ = run_plain(tx, problem.params, 24, lambda params, k: problem_grad(problem, params, k))
    params = {name: [np.array(leaf)] for name, leaf in problem.params.items()}
    current, grads = dict(problem.params), []
    for step in range(24):
        grads.append(problem.grad(current, step))
        if step >= 3:
            current = {
                name: current[name] - 0.5 * grads[step - delay][name]
                for name, delay in (("W", 3), ("b", 0))
            }
        for name, leaf in current.items():
            params[name].append(leaf)
    for name, leaves in params.items():
        np.testing.assert_allclose([p[name] for p in trace], leaves, rtol=0, atol=1e-12)


def problem_grad(problem, params, step):
    as_numpy = {name: np.asarray(leaf) for name, leaf in params.items()}
    return jax.tree.map(jnp.asarray, problem.grad(as_numpy, step))


@pytest.mark.parametrize("stage", [None, -1, 3, 1.0, "1"])
def test_a_leaf_without_a_stage_is_named(stage):
    delays = dc.pipeline_delays(lambda path: stage if path == "head" else 0, 3)
    message = rf"'head' the stage {stage!r}: it must be an integer in \[0, 3\)"
    with pytest.raises(ValueError, match=message):
        dc.delay_gradients(optax.sgd(0.1), delays).init(PARAMS)


@pytest.mark.parametrize("num_stages", [0, -1, 1.5, None])
def test_bad_number_of_stages(num_stages):
    error = ValueError if isinstance(num_stages, int) else TypeError
    with pytest.raises(error, match="num_stages must be an integer >= 1"):
        dc.pipeline_delays(stage_of, num_stages)
