"""Every error says what was wrong, where, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcasgd_jax import rivals
from rivals import table

SGD = optax.sgd(0.1)
BAD = {
    "scale_by_staleness rule": (lambda: rivals.scale_by_staleness(0.5), "rule must be a function"),
    "fedbuff rule": (lambda: rivals.fedbuff(SGD, 2, rule=0.5), "rule must be a function"),
    "exponent": (lambda: rivals.polynomial_staleness(-1.0), "exponent must be a finite number >="),
    "delay_adaptive": (
        lambda: rivals.delay_adaptive(0),
        "num_workers must be an integer >= 1, got 0",
    ),
    "step_bound": (
        lambda: rivals.adaptive_step_sizes(0.0, 3),
        "step_bound must be a finite number > 0",
    ),
    "step_bound inf": (
        lambda: rivals.adaptive_step_sizes(np.inf, 3),
        "step_bound must be a finite",
    ),
    "step_bound nan": (
        lambda: rivals.adaptive_step_sizes(np.nan, 3),
        "step_bound must be a finite",
    ),
    "max_delay": (
        lambda: rivals.adaptive_step_sizes(1.0, -1),
        "max_delay must be an integer >= 0, got -1",
    ),
    "max_delay float": (
        lambda: rivals.adaptive_step_sizes(1.0, 2.5),
        "max_delay must be an integer",
    ),
    "alpha": (
        lambda: rivals.adaptive_step_sizes(1.0, 3, alpha=1.5),
        "alpha must be .* <= 1, got 1.5",
    ),
    "alpha 0": (
        lambda: rivals.adaptive_step_sizes(1.0, 3, alpha=0),
        "alpha must be a finite number > 0",
    ),
    "bound": (lambda: rivals.drop_stale(SGD, 0), "bound must be an integer >= 1, got 0"),
    "drop workers": (
        lambda: rivals.drop_stale(SGD, 2, num_workers=0),
        "num_workers must be an integer >= 1",
    ),
    "buffer_size": (lambda: rivals.fedbuff(SGD, 0), "buffer_size must be an integer >= 1, got 0"),
    "fedbuff workers": (
        lambda: rivals.fedbuff(SGD, 2, num_workers=-1),
        "num_workers must be an integer >= 1",
    ),
    "num_steps": (
        lambda: rivals.delayed_nesterov(0.1, 0),
        "num_steps must be an integer >= 1, got 0",
    ),
    "nesterov": (lambda: rivals.delayed_nesterov(0.1, 2, 1.0), r"momentum must lie in \[0, 1\)"),
    "smoothing": (
        lambda: rivals.delayed_nesterov(0.1, 2, smoothing=0.6),
        r"smoothing must lie in \[0, 1/num_steps\], got 0.6",
    ),
    "smoothing nan": (lambda: rivals.delayed_nesterov(0.1, 2, smoothing=np.nan), "smoothing must"),
    "spikes": (lambda: rivals.spike_compensation(-0.1, 1), r"momentum must lie in \[0, 1\)"),
    "spike delay": (
        lambda: rivals.spike_compensation(0.9, -1),
        "delay must be an integer >= 0, got -1",
    ),
    "spike delays": (
        lambda: rivals.spike_compensation(0.9, {"a": 1.5}),
        r"delay\['a'\] must be an integer",
    ),
    "ordered": (lambda: rivals.ordered_momentum(1.0, 2), r"momentum must lie in \[0, 1\), got 1.0"),
    "ordered workers": (
        lambda: rivals.ordered_momentum(0.9, 0),
        "num_workers must be an integer >= 1",
    ),
    "bucket_size": (
        lambda: rivals.ordered_momentum(0.9, 2, bucket_size=0),
        "bucket_size must be an integer >= 1, got 0",
    ),
    "pipemare delay": (
        lambda: rivals.pipemare_rescale(-1, 3),
        "delay must be an integer >= 0, got -1",
    ),
    "pipemare steps": (
        lambda: rivals.pipemare_rescale(1, 0),
        "num_steps must be an integer >= 1, got 0",
    ),
    "dc_ssgd rate": (lambda: rivals.dc_ssgd(-0.1, 1.0), "learning_rate must be a finite number"),
    "dc_ssgd lambda0": (lambda: rivals.dc_ssgd(0.1, -1.0), "lambda0 must be a finite number >= 0"),
    "dc_s3gd": (lambda: rivals.dc_s3gd(SGD, -0.2), "lambda0 must be a finite number >= 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_hyperparameters(name):
    make, message = BAD[name]
    wrong_type = name in ("max_delay float", "spike delays")
    with pytest.raises(TypeError if wrong_type else ValueError, match=message):
        make()


def test_borders_are_accepted():
    rivals.adaptive_step_sizes(1e-9, 0, alpha=1)
    rivals.adaptive_step_sizes(jnp.asarray(1.0), np.int64(3))
    rivals.delayed_nesterov(lambda count: 0.1, 4, 0, smoothing=0.25)
    rivals.spike_compensation(0, lambda params: 1)
    rivals.dc_ssgd(lambda count: 0.1, lambda count: 2.0)
    rivals.polynomial_staleness(0)


@table.every
def test_missing_extra_args(case):
    tx, params = case.make(), case.params()
    if not case.needs:
        tx.update(case.grads(0), tx.init(params), params)
        return
    with pytest.raises(TypeError, match=rf"update\(\) needs {case.needs[0]}=: .*tx\.update\("):
        tx.update(case.grads(0), tx.init(params), params)


@table.those(lambda case: "staleness" in case.needs)
def test_impossible_staleness(case):
    tx, params = case.make(), case.params()
    for staleness, error in (
        (-1, ValueError),
        (np.int32(-2), ValueError),
        (1.5, TypeError),
        (jnp.zeros(2, jnp.int32), TypeError),
    ):
        with pytest.raises(error, match="staleness must be"):
            tx.update(case.grads(0), tx.init(params), params, staleness=staleness)


def test_a_staleness_of_each_leaf_only_where_each_leaf_is_scaled():
    grads = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = rivals.scale_by_staleness(rivals.inverse_staleness)
    updates, _ = tx.update(grads, tx.init(grads), staleness={"a": 4, "b": 0})
    assert float(updates["a"][0]) == 0.25
    assert float(updates["b"][0]) == 1
    tx = rivals.adaptive_step_sizes(1.0, 3)
    with pytest.raises(TypeError, match=r"staleness must be one integer, got \{"):
        tx.update(grads, tx.init(grads), staleness={"a": 4, "b": 0})


@pytest.mark.parametrize("worker", [3, -1])
@table.those(lambda case: "worker" in case.needs)
def test_worker_out_of_range(case, worker):
    tx, params = case.make(), case.params()
    with pytest.raises(ValueError, match=f"worker {worker} is out of range: num_workers is 3"):
        tx.update(case.grads(0), tx.init(params), params, worker=worker)


@pytest.mark.parametrize("name", ["dc_ssgd", "dc_s3gd"])
def test_missing_params_and_complex_ones(name):
    case = next(case for case in table.CASES if case.name == name)
    tx, params = case.make(), case.params()
    with pytest.raises(ValueError, match=f"{name} needs the current parameters"):
        tx.update(case.grads(0), tx.init(params))
    with pytest.raises(ValueError, match=r"Parameter \['w'\] is complex"):
        tx.init({"w": jnp.ones((3, 2), jnp.complex64)})


@pytest.mark.parametrize("make", [rivals.spike_compensation, rivals.pipemare_rescale])
def test_delays_of_leaves_need_params(make):
    first = {"momentum": 0.9} if make is rivals.spike_compensation else {"num_steps": 3}
    tx, params = make(delay={"a": 1}, **first), {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match=f"{make.__name__} needs the current parameters"):
        tx.update(params, tx.init(params))
    tx = make(delay={"b": 1}, **first)
    with pytest.raises(ValueError, match="delay is not a prefix of the parameter tree"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"a": jnp.ones(2), "b": jnp.ones((3, 4))}, r"gradient\['a'\] has shape \(2,\)"),
        ({"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}, r"\['b'\] is of 2 workers, .* are of 3"),
        ({"a": jnp.ones(()), "b": jnp.ones((3, 4))}, r"gradient\['a'\] has shape \(\)"),
    ],
)
def test_gradients_that_are_not_stacked(grads, message):
    tx, params = rivals.dc_ssgd(0.1, 1.0), {"a": jnp.ones(2), "b": jnp.ones(4)}
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(params), params)


def test_workers_parameters_that_are_not_stacked():
    tx = rivals.dc_s3gd(SGD)
    for params in ({"a": jnp.ones(())}, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}):
        with pytest.raises(ValueError, match="one leading axis of workers each"):
            tx.init(params)


def test_injected_sizes_must_be_static():
    tx = optax.inject_hyperparams(rivals.adaptive_step_sizes)(step_bound=1.0, max_delay=3)
    with pytest.raises(TypeError, match=r"max_delay must be an integer.*static_args="):
        jax.jit(tx.init)(jnp.ones(2))
