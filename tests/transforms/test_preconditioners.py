"""Pulls in the metric of an optimizer's steps: literal loops, invariances, mutants, bad input."""

import functools
import warnings

import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest
from cases import assert_same

import dcasgd_jax as dc
from dcasgd_jax import sim
from transforms import rotated_oracle

PROBLEM = oracle.Problem()
ORDER = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]
RATE, B1, B2, EPS = 0.05, 0.9, 0.99, 1e-6


class Absolute:
    """min(λ |g|, κ/η) of one leaf, pushed as the rotated oracle is."""

    def __init__(self, shape, *, eta, lam, max_pull, **ignored):
        del shape, ignored
        self.lam, self.cap = lam, max_pull / eta

    def push(self, grad, param, stale):
        q = np.minimum(self.lam * np.abs(grad), self.cap)
        return grad + q * (param - stale), q


class Server(oracle.Server):
    """Adam's steps on raw gradients, less a pull in Adam's coordinates."""

    def __init__(self, curvature, lam, max_pull):
        super().__init__(PROBLEM.params, 4, lr=RATE)
        self.count = 0
        self.mean_square = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}
        self.curvatures = {
            name: curvature(leaf.shape, batch=4, eta=RATE, lam=lam, max_pull=max_pull)
            for name, leaf in self.params.items()
        }

    def divisor(self, name):
        return np.sqrt(self.mean_square[name] / (1 - B2**self.count)) + EPS

    def root(self, name):
        return np.sqrt(self.divisor(name))

    def term(self, name, grad, param, stale):
        """What the step is short of."""
        root = self.root(name)
        seen = grad / root
        compensated, _ = self.curvatures[name].push(seen, root * param, root * stale)
        return (compensated - seen) / root

    def direction(self, worker, name, grad):
        self.velocity[name] = B1 * self.velocity[name] + (1 - B1) * grad
        self.mean_square[name] = B2 * self.mean_square[name] + (1 - B2) * grad**2
        plain = self.velocity[name] / (1 - B1**self.count) / self.divisor(name)
        return plain + self.term(name, grad, self.params[name], self.stale_params(worker)[name])

    def push(self, worker, grads):
        self.count += 1
        super().push(worker, grads)


class NoMetric(Server):
    """The curvature of Adam's gradients, capped at Adam's rate, in the weights themselves."""

    def term(self, name, grad, param, stale):
        return self.curvatures[name].push(grad, param, stale)[0] - grad


class NotBroughtBack(Server):
    """Applies the pull of the stretched coordinates to the weights."""

    def term(self, name, grad, param, stale):
        return self.root(name) * super().term(name, grad, param, stale)


class StretchedByTheDivisor(Server):
    """Takes d for its root."""

    def root(self, name):
        return self.divisor(name)


class OfTheLastPush(Server):
    """Stretches by what Adam divided the last step by."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.last = dict.fromkeys(self.params, 1.0)

    def root(self, name):
        last, self.last[name] = self.last[name], super().root(name)
        return last


class NoBiasCorrection(Server):
    """Stretches by v as it is, which is far too small at first."""

    def root(self, name):
        return np.sqrt(np.sqrt(self.mean_square[name]) + EPS)


KINDS = {
    "absolute": (Absolute, dc.curvatures.absolute(), 3.0),
    "rotated": (rotated_oracle.Rotated, dc.curvatures.rotated(4, every=20, sides="both"), 2.0),
}
each = pytest.mark.parametrize("kind", KINDS)
MUTANTS = (NoMetric, NotBroughtBack, StretchedByTheDivisor, OfTheLastPush, NoBiasCorrection)


def train_oracle(server_class, kind, max_pull=1.0):
    curvature, _, lam = KINDS[kind]
    return oracle.flatten(oracle.run(server_class(curvature, lam, max_pull), ORDER, PROBLEM.grad))


def adam(lambda0, curvature, inner=None, **settings):
    return dc.compensate_updates(
        inner or optax.adam(RATE, b1=B1, b2=B2, eps=EPS),
        lambda0,
        **{"learning_rate": RATE, "max_pull": 1.0, **settings},
        curvature=curvature,
        preconditioner=dc.preconditioners.adam(b2=B2, eps=EPS),
    )


def train(tx):
    trace, _ = loops.run_workers(
        dc.remember_pulls(tx, 4), PROBLEM.params, ORDER, loops.softmax_grad_fn(), loops.by_worker
    )
    return oracle.flatten(trace)


@each
@pytest.mark.parametrize("max_pull", [1.0, 0.2])
def test_follows_the_literal_loop(x64, kind, max_pull):
    _, curvature, lam = KINDS[kind]
    found = train(adam(lam, curvature, max_pull=max_pull))
    np.testing.assert_allclose(found, train_oracle(Server, kind, max_pull), rtol=0, atol=1e-10)


@each
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_known_wrong_one_would_be_noticed(kind, mutant):
    assert np.abs(train_oracle(mutant, kind) - train_oracle(Server, kind)).max() > 1e-3


def test_it_is_what_adam_divides_by(x64):
    """The steps of Adam without momentum, times d, are the gradients."""
    plain = optax.scale_by_adam(b1=0.0, b2=B2, eps=EPS)
    of_adam = dc.preconditioners.adam(b2=B2, eps=EPS)
    params = {"a": jnp.zeros(5), "b": {"c": jnp.zeros((2, 3))}}
    state, divided = plain.init(params), of_adam.init(params)
    for step in range(5):
        grads = jax.tree.map(lambda p, s=step: jnp.sin(7.0 + s + jnp.arange(p.size)), params)
        grads = jax.tree.map(lambda g, p: g.reshape(p.shape), grads, params)
        steps, state = plain.update(grads, state, params)
        divisors, divided = of_adam.update(divided, grads)
        assert_same(jax.tree.map(jnp.multiply, steps, divisors), grads, rtol=1e-13)


# In the stretched coordinates everything is as with plain SGD: a run there is the reference.
DIVISORS = {"w": np.array([[0.5, 4.0], [2.0, 0.1], [1.0, 8.0]]), "b": np.array([3.0, 0.25])}
FIXED = dc.preconditioners.Preconditioner(
    "fixed", lambda params: None, lambda state, grads: (jax.tree.map(jnp.asarray, DIVISORS), state)
)
CURVATURES = {
    "squared_gradient": dc.curvatures.squared_gradient(),
    "absolute": dc.curvatures.absolute(),
    "adaptive": dc.curvatures.adaptive(),
    "rows": dc.curvatures.rows(4),
    "rotated": dc.curvatures.rotated(4, every=2, sides="both"),
    "fisher": dc.curvatures.fisher(),
    "hessian": dc.curvatures.hessian(),
}
STRENGTHS = {
    "number": 2.0,
    "schedule": optax.linear_schedule(3.0, 1.0, 4),
    "ratio": dc.strengths.ratio(0.5),
    "capped share": dc.strengths.capped_share(0.3),
    "least squares": dc.strengths.least_squares(),
}


# And one whose "w" [3, 2] is divided by a matrix, from the side of its columns.
COLUMNS = dc.preconditioners.MatrixDivisor(
    np.array([0.5, 4.0]), np.array([[0.6, -0.8], [0.8, 0.6]])
)
OF_COLUMNS = dc.preconditioners.Preconditioner(
    "of columns",
    lambda params: None,
    lambda state, grads: (jax.tree.map(jnp.asarray, {**DIVISORS, "w": COLUMNS}), state),
)
WHOLE = COLUMNS.vectors @ np.diag(COLUMNS.values) @ COLUMNS.vectors.T
ROOT = COLUMNS.vectors @ np.diag(np.sqrt(COLUMNS.values)) @ COLUMNS.vectors.T


def _times(power, tree):
    """A tree with its gradients multiplied by the whole divisor, or by its root, or divided."""
    w = {1: WHOLE, 0.5: ROOT, -0.5: np.linalg.inv(ROOT), -1: np.linalg.inv(WHOLE)}[power]
    return {"w": tree["w"] @ w, "b": tree["b"] * DIVISORS["b"] ** power}


def _times_numbers(power, tree):
    return _map(lambda leaf, divisor: leaf * divisor**power, tree, DIVISORS)


COORDINATES = {"numbers": (FIXED, _times_numbers), "matrix": (OF_COLUMNS, _times)}


def _draw(seed):
    generator = np.random.default_rng(seed)
    return {name: jnp.asarray(generator.normal(size=d.shape)) for name, d in DIVISORS.items()}


def _map(function, *trees):
    return jax.tree.map(function, *trees)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize(
    ("divisor", "strength"),
    [*(("numbers", strength) for strength in STRENGTHS), ("matrix", "number"), ("matrix", "ratio")],
)
def test_it_is_plain_sgd_in_other_coordinates(x64, curvature, strength, divisor):
    refused = None
    if strength == "capped share" and curvature == "hessian":
        refused = r"which hessian\(\) cannot"
    elif curvature == "fisher" and divisor == "matrix":
        refused = "In the coordinates of of columns no Fisher"
    if refused:
        with pytest.raises(ValueError, match=refused):
            _both(curvature, strength, *COORDINATES[divisor])
        return
    here, there = _both(curvature, strength, *COORDINATES[divisor])
    assert_same(here, there, rtol=1e-10, atol=1e-12)


def _both(curvature, strength, preconditioner, times):
    """Updates of a few pushes, in the stretched coordinates: with the preconditioner, and plain."""
    settings = {
        "learning_rate": 0.2,
        "curvature": CURVATURES[curvature],
        "max_pull": None if curvature == "hessian" else 0.7,
    }
    divide = optax.stateless(lambda updates, _: times(-1, updates))
    inner = optax.chain(divide, optax.sgd(0.2))
    tx = dc.compensate_updates(
        inner, STRENGTHS[strength], **settings, preconditioner=preconditioner
    )
    plain = dc.compensate_updates(optax.sgd(0.2), STRENGTHS[strength], **settings)
    stretch, shrink = functools.partial(times, 0.5), functools.partial(times, -0.5)
    product = lambda tangent: _map(lambda t: 3 * t + jnp.roll(t, 1), tangent)
    params, states, found = _draw(0), None, ([], [])
    for step in range(4):
        grads, stale, squares = _draw(3 * step + 1), _draw(3 * step + 2), _draw(3 * step + 3)
        squares = _map(jnp.square, squares)
        states = states or (tx.init(params), plain.init(params))
        one, first = tx.update(
            grads, states[0], params, stale_params=stale,
            hessian_vector_product=product, fisher_diagonal=lambda s=squares: s,
        )  # fmt: skip
        two, second = plain.update(
            shrink(grads), states[1], stretch(params), stale_params=stretch(stale),
            hessian_vector_product=lambda tangent: shrink(product(shrink(tangent))),
            fisher_diagonal=shrink(shrink(squares)),
        )  # fmt: skip
        states = first, second
        found[0].append(stretch(one))
        found[1].append(two)
    return found


def test_is_measured_in_the_coordinates_of_the_steps(x64):
    roots = _map(jnp.sqrt, DIVISORS)
    params, stale, grads = _draw(0), _draw(1), _draw(2)
    told = {"stale_params": stale, "measure_compensation": True}
    options = {"learning_rate": 0.1, "curvature": dc.curvatures.absolute()}
    tx = dc.compensate_updates(optax.sgd(0.1), 2.0, **options, preconditioner=FIXED)
    metrics = dc.compensation_metrics(tx.update(grads, tx.init(params), params, **told)[1])
    seen = _map(jnp.divide, grads, roots)
    moved = _map(lambda p, s, r: (p - s) * r, params, stale, roots)
    added = _map(lambda g, m: jnp.minimum(2 * jnp.abs(g), 10) * m, seen, moved)
    norm = lambda tree: float(optax.tree.norm(tree))
    assert float(metrics.ratio) == pytest.approx(norm(added) / norm(seen), rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("nothing", [{"lambda0": 0.0}, {"max_pull": 0.0}])
def test_without_a_pull_it_is_the_optimizer_bit_for_bit(nothing, dtype):
    settings = {"lambda0": 1e4, "curvature": dc.curvatures.rotated(4), **nothing}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)
    grad_fn = lambda params, event: jax.tree.map(lambda p: jnp.sin(p + event), params)
    run = lambda tx: loops.run_workers(tx, params, ORDER[:12], grad_fn, loops.by_worker)[0]
    plain = optax.with_extra_args_support(optax.adam(RATE, b1=B1, b2=B2, eps=EPS))
    assert_same(run(dc.remember_pulls(adam(**settings), 4)), run(plain))


@each
def test_where_nothing_has_moved_nothing_is_added(kind):
    """Bit for bit, also where a compiler rounds a product only once."""
    tx = adam(1e6, KINDS[kind][1])
    plain = optax.adam(RATE, b1=B1, b2=B2, eps=EPS)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PROBLEM.params)
    grads = jax.tree.map(jnp.sin, params)
    found, _ = jax.jit(tx.update)(grads, tx.init(params), params, stale_params=params)
    assert_same(found, jax.jit(plain.update)(grads, plain.init(params), params)[0])


def test_pulls_back_in_full_where_the_curvature_is_large(x64):
    """Whatever Adam divides by: the weight ends where the worker had it, plus Adam's step."""
    tx = adam(1e9, dc.curvatures.absolute())
    plain = optax.adam(RATE, b1=B1, b2=B2, eps=EPS)
    params, stale = _draw(0), _draw(1)
    state, plain_state = tx.init(params), plain.init(params)
    for step in range(3):
        grads = _map(lambda leaf, size=10.0**-step: size * leaf, _draw(2 + step))
        steps, plain_state = plain.update(grads, plain_state, params)
        updates, state = tx.update(grads, state, params, stale_params=stale)
        assert_same(_map(jnp.add, params, updates), _map(jnp.add, stale, steps), rtol=1e-9)


def test_a_leaf_without_a_usable_gradient_keeps_its_state():
    of_adam = dc.preconditioners.adam()
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": None}
    state = of_adam.update(of_adam.init(params), {**params, "a": jnp.full(2, 0.5)})[1]
    nan = {"a": jnp.asarray([jnp.nan, 1.0]), "b": None, "c": None}
    divisors, after = of_adam.update(state, nan)
    assert_same(after, state)
    assert divisors["b"] is None
    np.testing.assert_allclose(divisors["a"], 0.5, rtol=1e-5)
    assert_same(of_adam.update(of_adam.init({}), {})[1], of_adam.init({}))


def test_coordinates_that_never_had_a_gradient_stay(x64):
    """With eps = 0 nothing is divided by 0."""
    tx = dc.compensate_updates(
        optax.sgd(0.1), 5.0, learning_rate=0.1, curvature=dc.curvatures.rotated(1),
        preconditioner=dc.preconditioners.adam(eps=0.0),
    )  # fmt: skip
    params = {"w": jnp.ones((3, 2))}
    grads = {"w": jnp.asarray([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])}
    updates, _ = tx.update(grads, tx.init(params), params, stale_params={"w": jnp.zeros((3, 2))})
    assert np.all(np.isfinite(updates["w"]))
    np.testing.assert_array_equal(updates["w"][0], 0)
    assert np.all(updates["w"][1:] != -0.1 * grads["w"][1:])


def test_the_simulator_trains_with_it_and_sweeps_it():
    target = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
    loss = lambda w, x: jnp.mean((x @ (w - target)) ** 2)
    batches = jax.random.normal(jax.random.key(0), (150, 8, 2))
    problem = sim.Problem(loss, jnp.zeros((2, 2)))
    schedule = sim.make_schedule(sim.GammaTime(), 4, 150, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one that the gradient is changed before it
        result = sim.simulate(
            problem, adam(4.0, dc.curvatures.rotated(8)), schedule, batches,
            recording=sim.Recording(["compensation_ratio"]),
        )  # fmt: skip
    assert result.losses[-5:].mean() < 0.5 * result.losses[:5].mean()
    assert result.trace.compensation_ratio[-1] > 0
    swept = sim.sweep(
        problem,
        optax.inject_hyperparams(lambda lambda0: adam(lambda0, dc.curvatures.rotated(8)))(4.0),
        schedule,
        batches,
        hyperparams={"lambda0": [4.0, 0.0]},
    )
    np.testing.assert_allclose(swept.losses[0], result.losses, rtol=1e-4)


def test_in_float64_everything_is():
    with jax.enable_x64(True):
        tx = adam(1.0, dc.curvatures.rotated(4))
        params = {"w": jnp.ones((2, 2), jnp.float64)}
        updates, state = tx.update(params, tx.init(params), params, stale_params=params)
        assert updates["w"].dtype == jnp.float64
        kept = state.compensation.preconditioner.mean_square["w"]
        assert kept.dtype == jnp.float64


def test_bad_settings():
    make = lambda **settings: dc.compensate_updates(optax.adam(0.1), learning_rate=0.1, **settings)
    for wrong, message in (
        (dc.preconditioners.adam, r"call it, as in preconditioner=dc.preconditioners.adam\(\)"),
        ("adam", "preconditioner must be one of dc.preconditioners"),
        (dc.curvatures.absolute(), "preconditioner must be one of dc.preconditioners"),
    ):
        with pytest.raises(TypeError, match=message):
            make(preconditioner=wrong)
    for settings, message in (({"b2": 1.0}, "b2 must lie"), ({"eps": -1e-8}, "eps must be")):
        with pytest.raises(ValueError, match=message):
            dc.preconditioners.adam(**settings)
    short = dc.preconditioners.Preconditioner(
        "short", lambda params: None, lambda state, grads: (jnp.ones(3), state)
    )
    tx = make(preconditioner=short)
    with pytest.raises(
        ValueError, match=r"what short divides by\(the whole tree\) has shape \(3,\)"
    ):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), stale_params=jnp.ones(2))
    good = adam(1.0, dc.curvatures.absolute())
    with pytest.raises(TypeError, match="needs stale_params="):
        good.update(jnp.ones(2), good.init(jnp.ones(2)), jnp.ones(2))
