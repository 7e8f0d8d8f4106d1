"""The menu of curvatures: reference runs, identities, and what is refused."""

import chex
import compensations
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest

import dcasgd_jax as dc

PROBLEM = oracle.Problem()
CASES = oracle.cases("curvature_menu") | {
    "abs_lam0.5": oracle.cases("dc_curvatures")["abs_lam0.5"],
    "g2_lam8": oracle.cases("dc_curvatures")["g2_lam8"],
}


KINDS = {
    "g2": dc.curvatures.squared_gradient(),
    "abs": dc.curvatures.absolute(),
    "fisher": dc.curvatures.fisher(),
    "hvp": dc.curvatures.hessian(),
}


def settings_of(case):
    if "decay" in case:
        curvature = dc.curvatures.adaptive(case["decay"], case["eps"], bias_correction=True)
        return {"lambda0": case["lam0"], "curvature": curvature}
    return {"lambda0": case["lam"], "curvature": KINDS[case["kind"]]}


def run(tx, order):
    """The event loop, with what needs data computed from the batch of the event."""
    grad_fn = jax.grad(loops.softmax_loss)

    @jax.jit
    def step(params, state, stale, batch, worker):
        samples = jax.tree.map(lambda part: part[:, None], batch)
        of_samples = jax.vmap(grad_fn, in_axes=(None, 0))
        at_batch = lambda params: grad_fn(params, batch)
        updates, state = tx.update(
            at_batch(stale),
            state,
            params,
            worker=worker,
            stale_params=stale,
            hessian_vector_product=lambda tangent: jax.jvp(at_batch, (stale,), (tangent,))[1],
            fisher_diagonal=lambda: jax.tree.map(
                lambda g: jnp.mean(g * g, axis=0), of_samples(stale, samples)
            ),
        )
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, PROBLEM.params)
    state = tx.init(params)
    held = dict.fromkeys(order, params)
    trace = [params]
    for event, worker in enumerate(order):
        batch = jax.tree.map(jnp.asarray, PROBLEM.batch(event))
        params, state = step(params, state, held[worker], batch, jnp.int32(worker))
        held[worker] = params
        trace.append(params)
    return oracle.flatten(trace)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["explicit", "per_worker", "alias"])
def test_reference_runs(name, kind, x64):
    case = CASES[name]
    settings, num_workers = settings_of(case), max(case["order"]) + 1
    if kind == "alias":
        tx = dc.dcasgd(case["lr"], num_workers, **settings)
    else:
        compensate = dc.compensate_delay(**settings)
        if kind == "per_worker":
            compensate = dc.remember_pulls(compensate, num_workers)
        tx = optax.chain(compensate, optax.scale_by_learning_rate(case["lr"]))
    np.testing.assert_allclose(run(tx, case["order"]), case["theta_trace"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_another_curvature_gives_another_run(name, x64):
    case = CASES[name]
    wrong = KINDS["abs" if case.get("kind") == "g2" else "g2"]
    tx = optax.chain(
        dc.compensate_delay(settings_of(case)["lambda0"], curvature=wrong),
        optax.scale_by_learning_rate(case["lr"]),
    )
    assert np.abs(run(tx, case["order"]) - case["theta_trace"]).max() > 1e-3


def test_bias_correction_per_worker_counts_the_pushes_of_each_worker(x64):
    tx = compensations.explicit(2.0, ms_decay=0.9, eps=0.0, bias_correction=True, num_workers=2)
    params, stale = jnp.asarray([1.0]), jnp.asarray([0.5])
    state = tx.init(params)
    # The first mean square of a worker is corrected to g * g, whoever pushed before.
    for worker, grad in [(0, 0.2), (1, 0.4)]:
        grads = jnp.asarray([grad])
        out, state = tx.update(grads, state, params, stale_params=stale, worker=worker)
        np.testing.assert_allclose(out, [grad + 2 * grad * 0.5], rtol=1e-12)


def test_hvp_is_exact_on_a_quadratic(x64):
    hessian = jnp.asarray([[3.0, 1.0], [1.0, 2.0]])
    loss = lambda w: 0.5 * w @ hessian @ w
    params, stale = jnp.asarray([1.0, -2.0]), jnp.asarray([0.3, 0.7])
    tx = dc.compensate_delay(1.0, curvature=dc.curvatures.hessian())
    product = lambda tangent: jax.jvp(jax.grad(loss), (stale,), (tangent,))[1]
    compensated, _ = tx.update(
        jax.grad(loss)(stale), tx.init(params), params,
        stale_params=stale, hessian_vector_product=product,
    )  # fmt: skip
    np.testing.assert_allclose(compensated, jax.grad(loss)(params), rtol=1e-14)


@pytest.mark.parametrize("curvature", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_displacement_is_no_compensation(curvature, dtype):
    params = {"a": jnp.asarray([1.5, -2.0], dtype), "none": None}
    grads = {"a": jnp.asarray([0.25, -0.0], dtype), "none": None}
    tx = dc.compensate_delay(1e30, curvature=curvature)
    told = {
        "fisher_diagonal": {"a": jnp.asarray([jnp.inf, 1.0]), "none": None},
        "hessian_vector_product": lambda tangent: jax.tree.map(jnp.zeros_like, tangent),
    }
    updates, _ = jax.jit(lambda g, s, p: tx.update(g, s, p, stale_params=p, **told))(
        grads, tx.init(params), params
    )
    chex.assert_trees_all_equal(updates, grads)
    chex.assert_trees_all_equal_dtypes(updates, grads)


def test_fisher_takes_a_tree_as_well():
    params, stale = jnp.asarray([1.0]), jnp.asarray([0.0])
    tx = dc.compensate_delay(2.0, curvature=dc.curvatures.fisher())
    updates, _ = tx.update(
        jnp.asarray([0.5]), tx.init(params), params,
        stale_params=stale, fisher_diagonal=jnp.asarray([3.0]),
    )  # fmt: skip
    np.testing.assert_allclose(updates, [6.5])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"curvature": "abs"}, TypeError, "must be one of dc.curvatures, .* got 'abs'"),
        (
            {"curvature": dc.curvatures.adaptive},
            TypeError,
            r"itself: call it, as in curvature=dc\.curvatures\.adaptive\(\)",
        ),
        (
            {"curvature": KINDS["hvp"], "max_pull": 1.0, "learning_rate": 0.1},
            ValueError,
            r"hessian\(\) has none: pass max_pull=None",
        ),
    ],
)
def test_contradictions_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        dc.compensate_delay(1.0, **settings)


def test_a_typo_is_an_attribute_error():
    with pytest.raises(AttributeError, match="adaptiv"):
        dc.curvatures.adaptiv()  # type: ignore[attr-defined]


def test_a_curvature_is_written_as_it_was_made():
    assert repr(dc.curvatures.adaptive(0.9)) == "adaptive(ms_decay=0.9, eps=1e-07)"
    made = dc.curvatures.adaptive(0.9, 0.0, True, 4)
    assert repr(made) == "adaptive(ms_decay=0.9, eps=0.0, bias_correction=True, num_workers=4)"
    assert repr(dc.curvatures.fisher()) == "fisher()"


@pytest.mark.parametrize("curvature", KINDS.values(), ids=KINDS)
def test_no_strength_is_the_gradient_bit_for_bit_even_if_it_is_infinite(curvature):
    grads = jnp.asarray([jnp.inf, -jnp.inf, -0.0, 3.0, jnp.nan])
    told = {
        "stale_params": jnp.zeros(5),
        "fisher_diagonal": grads * grads,
        "hessian_vector_product": lambda tangent: grads,
    }
    for settings in ({"lambda0": 0.0}, {"lambda0": 2.0, "max_pull": 0.0, "learning_rate": 0.1}):
        if curvature.diagonal is None and "max_pull" in settings:
            continue
        tx = dc.compensate_delay(**settings, curvature=curvature)
        updates, _ = tx.update(grads, tx.init(grads), jnp.ones(5), **told)
        np.testing.assert_array_equal(updates, grads)
        np.testing.assert_array_equal(np.signbit(updates), np.signbit(grads))


@pytest.mark.parametrize(
    ("curvature", "message"),
    [("fisher", r"fisher_diagonal=\): the mean"), ("hvp", r"hessian_vector_product=\): a func")],
)
def test_missing_data_is_named(curvature, message):
    tx = dc.compensate_delay(1.0, curvature=KINDS[curvature])
    params = jnp.ones(2)
    with pytest.raises(TypeError, match=message):
        tx.update(params, tx.init(params), params, stale_params=params)


def test_data_of_another_shape_is_refused():
    params = {"w": jnp.ones(2)}
    wrong = {"w": jnp.ones(3)}
    fisher = dc.compensate_delay(1.0, curvature=dc.curvatures.fisher())
    hvp = dc.compensate_delay(1.0, curvature=dc.curvatures.hessian())
    for tx, told in (
        (fisher, {"fisher_diagonal": wrong}),
        (hvp, {"hessian_vector_product": lambda tangent: wrong}),
    ):
        with pytest.raises(ValueError, match=r"\['w'\] has shape \(3,\)"):
            tx.update(params, tx.init(params), params, stale_params=params, **told)
