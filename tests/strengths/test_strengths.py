"""Rules that choose λ0: what they aim at, their limits, and what is refused."""

import calls
import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcasgd_jax as dc
from dcasgd_jax import sim, sums

PARAMS = {"a": jnp.asarray([1.0, -2.0, 0.5]), "b": jnp.asarray([[3.0]])}
STALE = {"a": jnp.asarray([0.5, -2.5, 0.5]), "b": jnp.asarray([[2.0]])}
GRADS = {"a": jnp.asarray([0.3, -0.4, 1.0]), "b": jnp.asarray([[0.2]])}


def update(tx, state=None, grads=GRADS, params=PARAMS, stale=STALE, **told):
    state = tx.init(params) if state is None else state
    return tx.update(grads, state, params, stale_params=stale, **told)


def relative_norm(compensated, grads=GRADS):
    added = jax.tree.map(jnp.subtract, compensated, grads)
    return float(optax.tree.norm(added) / optax.tree.norm(grads))


@pytest.mark.parametrize("ms_decay", [None, 0.0, 0.95])
@pytest.mark.parametrize("rho", [0.0, 0.3, 2.0])
def test_ratio_is_met_at_the_first_update(rho, ms_decay):
    compensated, _ = update(compensations.explicit(dc.strengths.ratio(rho), ms_decay=ms_decay))
    assert relative_norm(compensated) == pytest.approx(rho, rel=1e-5)


def test_ratio_of_each_leaf():
    compensated, _ = update(
        compensations.explicit(dc.strengths.ratio(0.5, per_leaf=True), ms_decay=0.9)
    )
    for name in GRADS:
        assert relative_norm(compensated[name], GRADS[name]) == pytest.approx(0.5, rel=1e-5)
    whole, _ = update(compensations.explicit(dc.strengths.ratio(0.5), ms_decay=0.9))
    assert relative_norm(whole["b"], GRADS["b"]) != pytest.approx(0.5, rel=0.1)


def displaced(factor):
    return jax.tree.map(lambda p, s: p + factor * (s - p), PARAMS, STALE)


def test_a_smaller_displacement_is_compensated_less_unless_unsmoothed():
    """An unsmoothed ratio keeps its size however small the delay is."""
    sizes = {}
    for decay in (0.0, 0.99):
        tx = compensations.explicit(dc.strengths.ratio(0.5, decay=decay))
        _, state = update(tx)
        compensated, _ = update(tx, state, stale=displaced(0.01))
        sizes[decay] = relative_norm(compensated)
    assert sizes[0.0] == pytest.approx(0.5, rel=1e-3)
    # 0.01 of what it was, and the running means have moved by about 1/2 at the second update.
    assert 0.003 < sizes[0.99] < 0.01


def test_the_running_means_forget():
    tx = compensations.explicit(dc.strengths.ratio(0.5, decay=0.5))
    _, state = update(tx)
    for _ in range(40):
        compensated, state = update(tx, state, stale=displaced(0.01))
    assert relative_norm(compensated) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("per_leaf", [False, True])
def test_no_displacement_is_no_compensation_bit_for_bit(per_leaf):
    tx = compensations.explicit(dc.strengths.ratio(0.5, per_leaf=per_leaf), ms_decay=0.95)
    compensated, state = update(tx, stale=PARAMS)
    chex.assert_trees_all_equal(compensated, GRADS)
    _, state = update(tx, state)
    compensated, _ = update(tx, state, stale=PARAMS)
    chex.assert_trees_all_equal(compensated, GRADS)


def test_a_cap_still_holds():
    tx = compensations.explicit(
        dc.strengths.ratio(50.0), ms_decay=0.9, max_pull=1.0, learning_rate=0.1
    )
    compensated, _ = update(tx)
    added = jax.tree.map(jnp.subtract, compensated, GRADS)
    for name, moved in jax.tree.map(jnp.subtract, PARAMS, STALE).items():
        assert np.all(np.abs(added[name]) <= 1.00001 / 0.1 * np.abs(moved))


def test_rho_may_be_a_schedule():
    tx = compensations.explicit(dc.strengths.ratio(lambda count: 0.5 / (1 + count), decay=0.0))
    compensated, state = update(tx)
    assert relative_norm(compensated) == pytest.approx(0.5, rel=1e-5)
    compensated, _ = update(tx, state)
    assert relative_norm(compensated) == pytest.approx(0.25, rel=1e-5)


def quadratic():
    hessian = jnp.asarray([2.0, 5.0, 1.0])
    return lambda w: 0.5 * jnp.sum(hessian * w["a"] ** 2) + 2 * jnp.sum(w["b"] ** 2)


def test_least_squares_is_the_best_multiple():
    loss = quadratic()
    product = lambda tangent: jax.jvp(jax.grad(loss), (STALE,), (tangent,))[1]
    compensate = lambda lambda0: update(
        compensations.explicit(lambda0), grads=jax.grad(loss)(STALE), hessian_vector_product=product
    )[0]
    wanted = jax.grad(loss)(PARAMS)
    error = lambda compensated: float(
        optax.tree.norm(jax.tree.map(jnp.subtract, compensated, wanted))
    )
    best = min(np.linspace(0, 2, 201), key=lambda lambda0: error(compensate(float(lambda0))))
    fitted = error(compensate(dc.strengths.least_squares()))
    assert 0 < best < 2
    assert fitted <= error(compensate(float(best))) * 1.0001


def test_least_squares_is_never_negative():
    product = lambda tangent: jax.tree.map(jnp.negative, tangent)
    compensated, _ = update(
        compensations.explicit(dc.strengths.least_squares()), hessian_vector_product=product
    )
    chex.assert_trees_all_equal(compensated, GRADS)


def test_capped_share_approaches_its_share():
    key = jax.random.key(0)
    params, stale = jnp.zeros(1000), jnp.ones(1000)
    tx = compensations.explicit(dc.strengths.capped_share(0.2), max_pull=1.0, learning_rate=0.5)

    def step(state, key):
        grads = jax.random.normal(key, (1000,))
        updates, state = tx.update(grads, state, params, stale_params=stale)
        return state, jnp.mean(updates - grads <= -2.0 * 0.99999)

    _, shares = jax.lax.scan(step, tx.init(params), jax.random.split(key, 300))
    assert float(shares[0]) > 0.25
    assert float(jnp.mean(shares[-50:])) == pytest.approx(0.2, abs=0.01)


def test_capped_share_waits_for_a_gradient():
    tx = compensations.explicit(dc.strengths.capped_share(0.2), max_pull=1.0, learning_rate=0.5)
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    compensated, state = update(tx, grads=zeros)
    chex.assert_trees_all_equal(compensated, zeros)
    compensated, _ = update(tx, state)
    assert 0 < relative_norm(compensated) < np.inf


@pytest.mark.parametrize(
    "rule",
    [
        dc.strengths.ratio(0.5),
        dc.strengths.ratio(0.5, per_leaf=True),
        dc.strengths.capped_share(0.3),
    ],
)
def test_in_a_simulated_run_and_a_sweep(rule):
    """λ0 by a rule under jit, scan and vmap, in every transformation that takes a λ0."""
    loss = lambda w, batch: jnp.mean((batch @ w - 1.0) ** 2)
    schedule = sim.make_schedule(sim.ExponentialTime(), 4, num_updates=60, seed=0)
    batches = np.random.default_rng(0).normal(size=(60, 8, 3)).astype(np.float32)

    def chain(learning_rate):
        compensate = compensations.explicit(
            rule, ms_decay=0.9, max_pull=1.0, learning_rate=learning_rate
        )
        return optax.chain(compensate, optax.scale_by_learning_rate(learning_rate))

    result = calls.simulate(loss, jnp.zeros(3), chain(0.05), schedule, batches)
    backups = compensations.dcasgd(0.05, num_workers=4, lambda0=rule, ms_decay=0.9, max_pull=1.0)
    same = calls.simulate(loss, jnp.zeros(3), backups, schedule, batches)
    np.testing.assert_allclose(result.params, same.params, rtol=1e-5)
    tx = optax.inject_hyperparams(chain)(learning_rate=0.05)
    rates = np.asarray([0.05, 0.02], np.float32)
    swept = calls.sweep(
        loss, jnp.zeros(3), tx, schedule, batches, hyperparams={"learning_rate": rates}
    )
    np.testing.assert_allclose(jax.tree.leaves(swept.params)[0][0], result.params, rtol=1e-4)
    assert np.isfinite(result.losses).all()


@pytest.mark.parametrize("block", [sums.BLOCK, 2], ids=["at once", "in blocks"])
def test_where_the_gradients_are_split_over_devices(block, monkeypatch):
    """Each shard chooses for its own coordinates, as for a tree of its own."""
    monkeypatch.setattr(sums, "BLOCK", block)
    mesh = jax.make_mesh((4,), ("shards",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("shards")
    grads, params = jnp.linspace(0.1, 1.0, 20), jnp.ones(20)
    for rule in (dc.strengths.ratio(0.5), dc.strengths.capped_share(0.3)):
        tx = dc.compensate_delay(rule, max_pull=1.0, learning_rate=0.1)
        first = lambda g, p, tx=tx: tx.update(g, tx.init(p), p, stale_params=0.9 * p)[0]
        specs = {"mesh": mesh, "in_specs": (split, split), "out_specs": split}
        together = jax.jit(jax.shard_map(first, **specs))(grads, params)
        alone = jax.vmap(first)(grads.reshape(4, 5), params.reshape(4, 5)).reshape(20)
        np.testing.assert_allclose(together, alone, rtol=1e-6)


@pytest.mark.parametrize("curvature", ["adaptive", "absolute", "fisher", "squared_gradient"])
@pytest.mark.parametrize("rule", ["ratio", "ratio of each leaf", "share"])
def test_sums_in_blocks_are_the_sums(rule, curvature, monkeypatch):
    """Whole blocks and a rest, with leaves that are no multiple of a block, and None."""
    made = {
        "ratio": dc.strengths.ratio(0.5),
        "ratio of each leaf": dc.strengths.ratio(0.5, per_leaf=True),
        "share": dc.strengths.capped_share(0.3, gain=1.0),
    }[rule]
    draw = lambda seed: np.random.default_rng(seed).normal(size=(11, 3))
    params, stale = {"a": draw(0), "b": draw(1)[0], "n": draw(5)}, {}
    stale = {"a": draw(2), "b": draw(3)[0], "n": draw(6)}
    grads = {"a": draw(4), "b": draw(5)[0], "n": None}
    tx = dc.compensate_delay(
        made, curvature=getattr(dc.curvatures, curvature)(), max_pull=1.0, learning_rate=0.5
    )

    def twice():
        state = tx.init(params)
        for _ in range(2):
            told = {"fisher_diagonal": jax.tree.map(np.square, params)}
            updates, state = tx.update(grads, state, params, stale_params=stale, **told)
        return updates, state.strength

    at_once = twice()
    monkeypatch.setattr(sums, "BLOCK", 4)
    chex.assert_trees_all_close(twice(), at_once, rtol=1e-5)


def test_one_trace():
    tx = compensations.explicit(dc.strengths.ratio(0.5), ms_decay=0.95)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(grads, state, params, stale):
        return tx.update(grads, state, params, stale_params=stale)

    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = step(GRADS, state, PARAMS, STALE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dc.strengths.ratio(-1.0), "rho must be a finite number >= 0, got -1.0"),
        (lambda: dc.strengths.ratio(0.5, decay=1.0), r"decay must lie in \[0, 1\)"),
        (lambda: dc.strengths.least_squares(decay=-0.1), "decay must lie in"),
        (lambda: dc.strengths.capped_share(1.0), r"share must lie in \(0, 1\)"),
        (lambda: dc.strengths.capped_share(0.5, gain=float("nan")), "gain must be"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_rule_needs_is_named():
    with pytest.raises(ValueError, match="pass max_pull="):
        update(compensations.explicit(dc.strengths.capped_share(0.5)))
    with pytest.raises(TypeError, match="hessian_vector_product="):
        update(compensations.explicit(dc.strengths.least_squares()))


@pytest.mark.parametrize(
    "rule",
    [dc.strengths.ratio(0.5), dc.strengths.ratio(0.5, per_leaf=True),
     dc.strengths.least_squares()],
    ids=["ratio", "ratio of each leaf", "least squares"],
)  # fmt: skip
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_push_that_is_not_finite_is_forgotten(rule, bad):
    tx = compensations.explicit(rule)
    told = {"hessian_vector_product": lambda tangent: jax.tree.map(lambda t: 3 * t, tangent)}
    _, before = update(tx, **told)
    usual, _ = update(tx, before, **told)
    broken = {"a": GRADS["a"].at[1].set(bad), "b": GRADS["b"]}
    _, after = update(tx, before, broken, **told)
    compensated, _ = update(tx, after, **told)
    assert relative_norm(compensated) == pytest.approx(relative_norm(usual), rel=0.3)


def test_ratio_of_each_leaf_leaves_out_what_is_none():
    tx = compensations.explicit(dc.strengths.ratio(0.5, per_leaf=True))
    frozen = lambda tree: {**tree, "c": None}
    compensated, _ = update(tx, None, frozen(GRADS), frozen(PARAMS), frozen(STALE))
    without, _ = update(tx)
    chex.assert_trees_all_equal(compensated, frozen(without))
