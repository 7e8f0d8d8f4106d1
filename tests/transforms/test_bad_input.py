"""Every error says what was wrong, where, and what to do."""

import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcasgd_jax as dc
from dcasgd_jax import rivals, rows, trees

# Every public constructor, reduced to its keyword arguments.
COMPENSATING = {
    "compensate_delay": lambda **kw: compensations.explicit(**{"lambda0": 2.0, **kw}),
    "compensate_worker_delay": lambda **kw: compensations.per_worker(
        **{"lambda0": 2.0, "num_workers": 3, **kw}
    ),
    "compensate_fixed_delay": lambda **kw: compensations.fixed_delay(
        **{"lambda0": 2.0, "delay": 2, **kw}
    ),
    "dcasgd": lambda **kw: compensations.dcasgd(**{"learning_rate": 0.1, "num_workers": 3, **kw}),
}
compensating = pytest.mark.parametrize("name", COMPENSATING)


@pytest.mark.parametrize("lambda0", [-1.0, -1e-9, np.nan, np.inf, -np.inf, np.float32(-1)])
@compensating
def test_lambda0(name, lambda0):
    with pytest.raises(ValueError, match=r"lambda0 must be a finite number >= 0, got .*-?\w"):
        COMPENSATING[name](lambda0=lambda0)


@pytest.mark.parametrize("ms_decay", [-0.1, 1.0, 1.5, np.nan, np.inf, 1])
@compensating
def test_ms_decay(name, ms_decay):
    with pytest.raises(ValueError, match=r"ms_decay must lie in \[0, 1\), got "):
        COMPENSATING[name](ms_decay=ms_decay)


@pytest.mark.parametrize("eps", [-1e-7, np.nan, np.inf])
@compensating
def test_eps(name, eps):
    with pytest.raises(ValueError, match=r"eps must be a finite number >= 0"):
        COMPENSATING[name](eps=eps, ms_decay=0.9)


@pytest.mark.parametrize("max_pull", [-0.5, np.nan, -np.inf])
@compensating
def test_max_pull(name, max_pull):
    with pytest.raises(ValueError, match=r"max_pull must be a number >= 0"):
        COMPENSATING[name](max_pull=max_pull, learning_rate=0.1)


@pytest.mark.parametrize("rate", [-0.1, np.nan, np.inf])
@compensating
def test_learning_rate(name, rate):
    with pytest.raises(ValueError, match=r"learning_rate must be a finite number >= 0"):
        COMPENSATING[name](learning_rate=rate, max_pull=1.0)


@pytest.mark.parametrize("name", [name for name in COMPENSATING if name != "dcasgd"])
def test_cap_without_learning_rate(name):
    with pytest.raises(ValueError, match=r"max_pull caps the curvature.*pass learning_rate="):
        COMPENSATING[name](max_pull=1.0)


HAVE_WORKERS = pytest.mark.parametrize(
    "make",
    [
        lambda n: compensations.explicit(2.0, ms_decay=0.9, num_workers=n),
        lambda n: compensations.per_worker(2.0, n),
        lambda n: compensations.dcasgd(0.1, num_workers=n),
    ],
    ids=["compensate_delay", "compensate_worker_delay", "dcasgd"],
)


@pytest.mark.parametrize("num_workers", [0, -2])
@HAVE_WORKERS
def test_too_few_workers(make, num_workers):
    with pytest.raises(
        ValueError, match=rf"num_workers must be an integer >= 1, got {num_workers}"
    ):
        make(num_workers)


@pytest.mark.parametrize("num_workers", [2.0, "2", jnp.ones(2, jnp.int32), np.float32(2), True])
@HAVE_WORKERS
def test_num_workers_is_no_int(make, num_workers):
    with pytest.raises(TypeError, match=r"num_workers must be an integer >= 1, got ") as raised:
        make(num_workers)
    # What an injected size has become, and how to say that it is none.
    assert ("static_args=('num_workers',)" in str(raised.value)) == hasattr(num_workers, "sharding")


@HAVE_WORKERS
def test_num_workers_may_be_any_integer(make):
    for num_workers in (np.int64(3), np.asarray(3)):
        state = make(num_workers).init(jnp.ones(2))
        kept = trees.find_states(state, rows.PerWorker)
        assert {node.num_workers for node in kept} - {None} == {3}  # None: there is no weight


@pytest.mark.parametrize("make", [compensations.per_worker, compensations.fixed_delay])
def test_injected_sizes_must_be_static(make):
    """Without `static_args` optax makes them arrays, which are traced inside jit."""
    size = "num_workers" if make is compensations.per_worker else "delay"
    tx = optax.inject_hyperparams(make)(lambda0=2.0, **{size: 3})
    with pytest.raises((TypeError, ValueError), match=f"{size} must be an integer"):
        jax.jit(tx.init)(jnp.ones(2))


HAVE_DELAYS = pytest.mark.parametrize(
    "make",
    [
        lambda delay: compensations.fixed_delay(2.0, delay),
        lambda delay: dc.delay_gradients(optax.sgd(0.1), delay),
    ],
    ids=["compensate_fixed_delay", "delay_gradients"],
)


@HAVE_DELAYS
def test_negative_delay(make):
    with pytest.raises(ValueError, match="delay must be an integer >= 0, got -1"):
        make(-1)
    with pytest.raises(ValueError, match=r"delay\['a'\]\['b'\] must be an integer >= 0, got -3"):
        make({"a": {"b": -3, "c": 1}})


@HAVE_DELAYS
def test_delay_that_is_no_int(make):
    with pytest.raises(TypeError, match=r"delay must be an integer >= 0, got 1\.5"):
        make(1.5)
    with pytest.raises(TypeError, match=r"delay\['b'\] must be an integer >= 0, got 'two'"):
        make({"a": 1, "b": "two"})


@HAVE_DELAYS
def test_callable_delay_is_checked_when_it_is_called(make):
    with pytest.raises(ValueError, match=r"delay\['a'\] must be an integer >= 0, got -1"):
        make(lambda params: {"a": -1}).init({"a": jnp.ones(2)})


@HAVE_DELAYS
def test_delay_that_is_no_prefix(make):
    for delay in ({"a": 1, "c": 1}, {"a": 1}, {"a": 1, "b": {"x": 1}}):
        with pytest.raises(ValueError, match="delay is not a prefix of the parameter tree"):
            make(delay).init({"a": jnp.ones(2), "b": jnp.ones(2)})


@compensating
def test_complex_params(name):
    params = {"layer": {"real": jnp.ones(2), "phase": jnp.ones(2, jnp.complex64)}}
    with pytest.raises(ValueError, match=r"Parameter \['layer'\]\['phase'\] is complex"):
        COMPENSATING[name]().init(params)


WITHOUT_PARAMS = {
    "compensate_delay": {"stale_params": jnp.ones(2)},
    "compensate_worker_delay": {"worker": 0},
    "compensate_fixed_delay": {},
    "dcasgd": {"worker": 0},
}


@compensating
def test_missing_params(name):
    tx = COMPENSATING[name]()
    with pytest.raises(ValueError, match="needs the current parameters: call"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), **WITHOUT_PARAMS[name])


def test_missing_params_of_delay_gradients():
    tx = dc.delay_gradients(optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match="delay_gradients needs the current parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_missing_stale_params():
    tx, params = compensations.explicit(2.0), jnp.ones(2)
    with pytest.raises(TypeError, match=r"needs stale_params=.*dc\.remember_pulls\("):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "tx",
    [
        compensations.per_worker(2.0, 3),
        compensations.dcasgd(0.1, num_workers=3),
        compensations.explicit(2.0, ms_decay=0.9, num_workers=3),
    ],
    ids=["compensate_worker_delay", "dcasgd", "compensate_delay"],
)
class TestWorker:
    def update(self, tx, worker):
        params = jnp.ones(2)
        state = tx.init(params)
        remembers = trees.find_states(state, dc.RememberPullsState)
        told = {} if remembers else {"stale_params": params}
        return tx.update(params, state, params, worker=worker, **told)

    def test_missing(self, tx):
        with pytest.raises(TypeError, match=r"worker=\)?: the index in \[0, num_workers\)"):
            self.update(tx, None)

    @pytest.mark.parametrize(
        "worker", [3, 100, -1, np.int32(3), np.asarray(-2), jnp.int32(3), jnp.asarray(-1)]
    )
    def test_out_of_range(self, tx, worker):
        with pytest.raises(ValueError, match=rf"worker {worker} is out of range: num_workers is 3"):
            self.update(tx, worker)

    @pytest.mark.parametrize(
        "worker",
        [
            *(1.0, np.float64(1), jnp.asarray(1.0), jnp.zeros(2, jnp.int32), np.zeros(2, int)),
            *(True, "1", (1, 2)),
        ],
    )
    def test_no_integer(self, tx, worker):
        with pytest.raises(TypeError, match=r"integer"):
            self.update(tx, worker)


PARAMS = {"layer": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "head": (jnp.ones(4), jnp.ones(()))}


def without(tree, *path):
    tree = {**tree, "layer": dict(tree["layer"])}
    del tree[path[0]][path[1]]
    return tree


@pytest.mark.parametrize(
    ("stale_params", "message"),
    [
        (without(PARAMS, "layer", "b"), r"stale_params has no leaf \['layer'\]\['b'\], but params"),
        (
            {**PARAMS, "more": {"x": jnp.ones(1)}},
            r"stale_params has a leaf \['more'\]\['x'\], but params do not",
        ),
        (
            {**PARAMS, "layer": {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}},
            r"stale_params\['layer'\]\['w'\] has shape \(3, 2\), .* shape \(2, 3\)",
        ),
        (
            {**PARAMS, "head": (jnp.ones((1, 4)), jnp.ones(()))},
            r"stale_params\['head'\]\[0\] has shape \(1, 4\), .* shape \(4,\)",
        ),
        (
            {**PARAMS, "head": list(PARAMS["head"])},
            r"stale_params and params have the same leaves in different containers",
        ),
        (
            {**PARAMS, "head": (jnp.ones(4), None)},
            r"stale_params has no leaf \['head'\]\[1\], but params",
        ),
        (jnp.ones(3), r"stale_params has no leaf \['head'\]\[0\], but params do"),
    ],
    ids=["missing", "extra", "shape", "rank", "container", "none", "bare"],
)
@pytest.mark.parametrize("jit", [False, True])
def test_stale_params_unlike_params(stale_params, message, jit):
    tx = compensations.explicit(2.0)
    update = jax.jit(tx.update) if jit else tx.update
    with pytest.raises(ValueError, match=message):
        update(PARAMS, tx.init(PARAMS), PARAMS, stale_params=stale_params)


def test_bare_array_of_another_shape():
    tx, params = compensations.explicit(2.0), jnp.ones(3)
    with pytest.raises(ValueError, match=r"has shape \(2,\), but the parameter has shape \(3,\)"):
        tx.update(params, tx.init(params), params, stale_params=jnp.ones(2))


@pytest.mark.parametrize(
    "gradient", [{"layer": PARAMS["layer"]}, {**PARAMS, "more": jnp.ones(1)}], ids=["less", "more"]
)
def test_gradients_unlike_params(gradient):
    tx = compensations.explicit(2.0)
    with pytest.raises(ValueError, match=r"updates has (no leaf \['head'\]|a leaf \['more'\])"):
        tx.update(gradient, tx.init(PARAMS), PARAMS, stale_params=PARAMS)


def test_gradients_of_another_shape():
    tx = compensations.explicit(2.0)
    wrong = {**PARAMS, "head": (jnp.ones((1, 4)), jnp.ones(()))}
    with pytest.raises(ValueError, match=r"updates\['head'\]\[0\] has shape \(1, 4\)"):
        tx.update(wrong, tx.init(PARAMS), PARAMS, stale_params=PARAMS)


@compensating
def test_positional_worker(name):
    tx, params = COMPENSATING[name](), jnp.ones(2)
    with pytest.raises(TypeError, match=r"everything else by name: .*worker=m"):
        tx.update(params, tx.init(params), params, 1)


@pytest.mark.parametrize("name", ["ratio", "capped_share", "least_squares"])
def test_a_rule_that_was_not_called(name):
    words = rf"lambda0 is the function dc\.strengths\.{name} itself: call it, as in lambda0="
    for make in (dc.compensate_delay, lambda rule: dc.dcasgd(0.1, 2, lambda0=rule)):
        with pytest.raises(TypeError, match=words):
            make(getattr(dc.strengths, name))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: dc.compensate_delay("2"), "lambda0"),
        (lambda: dc.compensate_delay([1.0]), "lambda0"),
        (lambda: dc.compensate_delay(1.0, max_pull="1", learning_rate=0.1), "max_pull"),
        (lambda: dc.compensate_delay(1.0, max_pull=1, learning_rate="0.1"), "learning_rate"),
        (lambda: dc.curvatures.adaptive(eps="a"), "eps"),
        (lambda: dc.curvatures.adaptive(ms_decay=(0.9,)), "ms_decay"),
        (lambda: dc.dcasgd(0.1, 2, momentum="0.9"), "momentum"),
        (lambda: dc.dcasgd(0.1, 2, weight_decay="0.1"), "weight_decay"),
    ],
)
def test_what_is_no_number(make, name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got "):
        make()


def test_negative_weight_decay():
    with pytest.raises(ValueError, match="weight_decay must be a finite number >= 0"):
        dc.dcasgd(0.1, 2, weight_decay=-1.0)


def test_a_pull_of_another_shape():
    """Of which a part would have been written."""
    state = dc.dcasgd(0.1, 3).init(jnp.zeros(3))
    for pulled in (jnp.ones(2), jnp.ones(1), jnp.ones(())):
        with pytest.raises(ValueError, match=r"has rows of shape \(3,\), but got"):
            dc.record_pull(state, 1, pulled)


@pytest.mark.parametrize("momentum", [1.0, 1.5, -0.1])
def test_momentum(momentum):
    for settings in ({}, {"max_pull": 1.0}):
        with pytest.raises(ValueError, match=rf"momentum must lie in \[0, 1\), got {momentum}"):
            dc.dcasgd(0.1, 4, momentum=momentum, **settings)


@pytest.mark.parametrize("made_for", [2, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: dc.dcasgd(0.1, n),
        lambda n: compensations.explicit(2.0, ms_decay=0.9, num_workers=n),
        lambda n: rivals.per_worker_momentum(0.9, n),
        lambda n: rivals.ordered_momentum(0.9, n),
        lambda n: rivals.drop_stale(optax.sgd(0.1), 3, num_workers=n),
        lambda n: rivals.fedbuff(optax.sgd(0.1), 3, num_workers=n),
    ],
    ids=["dcasgd", "adaptive", "per_worker_momentum", "ordered", "drop_stale", "fedbuff"],
)
def test_a_state_for_another_number_of_workers(make, made_for):
    params = jnp.ones(2)
    state = make(made_for).init(params)
    told = {"worker": 0} | ({} if isinstance(state, dc.RememberPullsState) else STALE)
    with pytest.raises(ValueError, match=rf"has rows for {made_for} workers, .*num_workers=3"):
        make(3).update(params, state, params, **told)


STALE = {"stale_params": jnp.ones(2)}


@compensating
def test_good_borders_are_accepted(name):
    """What the checks must not reject."""
    for kwargs in (
        {"lambda0": 0},
        {"lambda0": lambda count: -1.0 * count},  # a schedule is not called at construction
        {"lambda0": jnp.asarray(2.0)},
        {"ms_decay": 0},
        {"ms_decay": 0.999},
        {"ms_decay": None},
        {"ms_decay": 0.9, "eps": 0},
        {"max_pull": 0, "learning_rate": 0.1},
        {"max_pull": np.inf, "learning_rate": 0},
        {"max_pull": 1, "learning_rate": lambda count: 0.1},
    ):
        params = jnp.ones(2)
        tx = COMPENSATING[name](**kwargs)
        updates, _ = tx.update(
            params, tx.init(params), params, **{"stale_params": params, "worker": 0}
        )
        assert np.all(np.isfinite(updates))
