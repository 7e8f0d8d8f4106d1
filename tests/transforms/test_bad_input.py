"""Every error says what was wrong, where, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcasgd_jax as dc

# Every public constructor, reduced to its keyword arguments.
COMPENSATING = {
    "compensate_delay": lambda **kw: dc.compensate_delay(**{"lambda0": 2.0, **kw}),
    "compensate_worker_delay": lambda **kw: dc.compensate_worker_delay(
        **{"lambda0": 2.0, "num_workers": 3, **kw}
    ),
    "compensate_fixed_delay": lambda **kw: dc.compensate_fixed_delay(
        **{"lambda0": 2.0, "delay": 2, **kw}
    ),
    "dcasgd": lambda **kw: dc.dcasgd(**{"learning_rate": 0.1, "num_workers": 3, **kw}),
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
    with pytest.raises(ValueError, match=r"ms_decay must lie in \[0, 1\), got .*None selects"):
        COMPENSATING[name](ms_decay=ms_decay)


@pytest.mark.parametrize("eps", [-1e-7, np.nan, np.inf])
@compensating
def test_eps(name, eps):
    with pytest.raises(ValueError, match=r"eps must be a finite number >= 0"):
        COMPENSATING[name](eps=eps)


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
        lambda n: dc.compensate_delay(2.0, num_workers=n),
        lambda n: dc.compensate_worker_delay(2.0, n),
        lambda n: dc.dcasgd(0.1, num_workers=n),
    ],
    ids=["compensate_delay", "compensate_worker_delay", "dcasgd"],
)


@pytest.mark.parametrize("num_workers", [0, -2])
@HAVE_WORKERS
def test_too_few_workers(make, num_workers):
    with pytest.raises(ValueError, match=rf"num_workers must be >= 1, got {num_workers}"):
        make(num_workers)


@pytest.mark.parametrize("num_workers", [2.0, "2", jnp.ones(2, jnp.int32), np.float32(2)])
@HAVE_WORKERS
def test_num_workers_is_no_int(make, num_workers):
    with pytest.raises(TypeError, match=r"num_workers must be a Python int, got .*static_args"):
        make(num_workers)


@pytest.mark.parametrize("make", [dc.compensate_worker_delay, dc.compensate_fixed_delay])
def test_injected_sizes_must_be_static(make):
    """Without `static_args` optax makes them arrays, which are traced inside jit."""
    size = "num_workers" if make is dc.compensate_worker_delay else "delay"
    tx = optax.inject_hyperparams(make)(lambda0=2.0, **{size: 3})
    with pytest.raises((TypeError, ValueError), match=f"{size} must be a Python int"):
        jax.jit(tx.init)(jnp.ones(2))


HAVE_DELAYS = pytest.mark.parametrize(
    "make",
    [
        lambda delay: dc.compensate_fixed_delay(2.0, delay),
        lambda delay: dc.delay_gradients(optax.sgd(0.1), delay),
    ],
    ids=["compensate_fixed_delay", "delay_gradients"],
)


@HAVE_DELAYS
def test_negative_delay(make):
    with pytest.raises(ValueError, match="delay must be >= 0 updates, got -1"):
        make(-1)
    with pytest.raises(ValueError, match=r"delay\['a'\]\['b'\] must be >= 0 updates, got -3"):
        make({"a": {"b": -3, "c": 1}})


@HAVE_DELAYS
def test_delay_that_is_no_int(make):
    with pytest.raises(ValueError, match=r"delay must be a Python int, got 1\.5"):
        make(1.5)
    with pytest.raises(ValueError, match=r"delay\['b'\] must be a Python int, got 'two'"):
        make({"a": 1, "b": "two"})


@HAVE_DELAYS
def test_callable_delay_is_checked_when_it_is_called(make):
    with pytest.raises(ValueError, match=r"delay\['a'\] must be >= 0 updates, got -1"):
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
    tx, params = dc.compensate_delay(2.0), jnp.ones(2)
    with pytest.raises(TypeError, match=r"needs stale_params=.*compensate_worker_delay"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "tx",
    [
        dc.compensate_worker_delay(2.0, 3),
        dc.dcasgd(0.1, num_workers=3),
        dc.compensate_delay(2.0, ms_decay=0.9, num_workers=3),
    ],
    ids=["compensate_worker_delay", "dcasgd", "compensate_delay"],
)
class TestWorker:
    def update(self, tx, worker):
        params = jnp.ones(2)
        # dcasgd and the per-worker form have no use for the stale parameters.
        return tx.update(params, tx.init(params), params, stale_params=params, worker=worker)

    def test_missing(self, tx):
        with pytest.raises(TypeError, match=r"needs worker=: the index in \[0, num_workers\)"):
            self.update(tx, None)

    @pytest.mark.parametrize("worker", [3, 100, -1, np.int32(3), np.asarray(-2)])
    def test_out_of_range(self, tx, worker):
        with pytest.raises(ValueError, match=rf"worker {worker} is out of range: num_workers is 3"):
            self.update(tx, worker)

    @pytest.mark.parametrize(
        "worker", [1.0, np.float64(1), jnp.asarray(1.0), jnp.zeros(2, jnp.int32), np.zeros(2, int)]
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
    tx = dc.compensate_delay(2.0)
    update = jax.jit(tx.update) if jit else tx.update
    with pytest.raises(ValueError, match=message):
        update(PARAMS, tx.init(PARAMS), PARAMS, stale_params=stale_params)


def test_bare_array_of_another_shape():
    tx, params = dc.compensate_delay(2.0), jnp.ones(3)
    with pytest.raises(ValueError, match=r"has shape \(2,\), but the parameter has shape \(3,\)"):
        tx.update(params, tx.init(params), params, stale_params=jnp.ones(2))


@pytest.mark.parametrize(
    "gradient", [{"layer": PARAMS["layer"]}, {**PARAMS, "more": jnp.ones(1)}], ids=["less", "more"]
)
def test_gradients_unlike_params(gradient):
    tx = dc.compensate_delay(2.0)
    with pytest.raises(ValueError, match="structure"):
        tx.update(gradient, tx.init(PARAMS), PARAMS, stale_params=PARAMS)


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
        {"eps": 0},
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
