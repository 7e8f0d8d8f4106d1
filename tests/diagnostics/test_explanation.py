"""`explain`: against NumPy in float64, where it is exact, at its limits, and what is refused."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import dcasgd_jax as dc
from dcasgd_jax import diagnostics

EPS = 1e-3  # large enough to be felt


def make_case():
    """Params, stale params and a batch, in float64."""
    params = problems.softmax_params(np.float64)
    rng = np.random.default_rng(3)
    move = lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape)
    batch = jax.tree.map(lambda leaf: leaf[0], problems.softmax_batches(1, np.float64))
    return jax.tree.map(move, params), params, batch


@pytest.fixture
def case(x64):
    return make_case()


def numpy_gradients(params, batch):
    """Of each sample of softmax regression, by hand: {"w": [8, 6, 3], "b": [8, 3]}."""
    images, labels = (np.asarray(part) for part in batch)
    logits = images @ np.asarray(params["w"]) + np.asarray(params["b"])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = p - np.eye(3)[labels]
    return {"w": images[:, :, None] * error[:, None, :], "b": error}


def numpy_gradient(params, batch):
    return {name: g.mean(axis=0) for name, g in numpy_gradients(params, batch).items()}


def numpy_terms(params, stale, batch, mean_square):
    """The compensation at λ0 = 1 of every curvature, by name and leaf."""
    names = ("w", "b")
    moved = {k: np.asarray(params[k] - stale[k]) for k in names}
    g = numpy_gradient(stale, batch)
    each = numpy_gradients(stale, batch)
    shifted = lambda h: {k: stale[k] + h * moved[k] for k in names}
    up, down = (numpy_gradient(shifted(h), batch) for h in (1e-5, -1e-5))
    return {
        "squared_gradient": {k: g[k] ** 2 * moved[k] for k in names},
        "adaptive": {k: g[k] ** 2 / np.sqrt(mean_square[k] + EPS) * moved[k] for k in names},
        "absolute": {k: np.abs(g[k]) * moved[k] for k in names},
        "fisher": {k: (each[k] ** 2).mean(axis=0) * moved[k] for k in names},
        "hessian": {k: (up[k] - down[k]) / 2e-5 for k in names},
        "uniform": moved,
    }


def numpy_explanation(change, term, g, true, square=None):
    (lambda0,), left, *_ = np.linalg.lstsq(term[:, None], change, rcond=None)
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return diagnostics.Explanation(
        r_squared=1 - left[0] / (change @ change),
        lambda0=lambda0,
        cosine_stale=cosine(g, true),
        cosine_compensated=cosine(g + max(lambda0, 0) * term, true),
        ratio=np.linalg.norm(lambda0 * term) / np.linalg.norm(g),
        below_eps=np.nan if square is None else np.mean(square < EPS),
        change_norm=np.linalg.norm(change),
        term_norm=np.linalg.norm(term),
    )


def mean_square_of(g, given):
    return {k: 0.3 * g[k] ** 2 + 1e-4 for k in g} if given else {k: g[k] ** 2 for k in g}


@functools.cache
def explained(given, per_leaf):
    """All curvatures at once: one compilation for many tests."""
    with jax.enable_x64(True):
        params, stale, batch = make_case()
        square = mean_square_of(numpy_gradient(stale, batch), given)
        options = dict(eps=EPS, per_leaf=per_leaf)
        if given:
            options["mean_square"] = jax.tree.map(jnp.asarray, square)
        explain = functools.partial(diagnostics.explain, problems.softmax_loss, **options)
        return jax.jit(explain)(params, stale, batch)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", diagnostics.CURVATURES)
def test_every_number_is_numpys(case, name, given):
    params, stale, batch = case
    g, true = numpy_gradient(stale, batch), numpy_gradient(params, batch)
    square = mean_square_of(g, given)
    term = numpy_terms(params, stale, batch, square)[name]
    change = {k: true[k] - g[k] for k in g}
    trees = [change, term, g, true, *([square] if name == "adaptive" else [])]
    whole = (np.concatenate([np.ravel(tree[k]) for k in ("w", "b")]) for tree in trees)
    found = explained(given, per_leaf=False)[name]
    np.testing.assert_allclose(found, numpy_explanation(*whole), rtol=1e-7)
    by_leaf = explained(given, per_leaf=True)[name]
    for leaf in ("w", "b"):
        expected = numpy_explanation(*(np.ravel(tree[leaf]) for tree in trees))
        np.testing.assert_allclose([field[leaf] for field in by_leaf], expected, rtol=1e-7)


def quadratic(w, batch):
    del batch
    hessian = jnp.asarray([[3.0, 1.0], [1.0, 2.0]])
    return 0.5 * w @ hessian @ w


def explain_quadratic(params, stale, loss=quadratic, **options):
    options = {
        "names": ("squared_gradient", "adaptive", "absolute", "hessian", "uniform")
    } | options
    explain = jax.jit(functools.partial(diagnostics.explain, loss, **options))
    return jax.tree.map(float, explain(jnp.asarray(params), jnp.asarray(stale), jnp.zeros(1)))


def test_hvp_on_a_quadratic_is_exact():
    hvp = explain_quadratic([1.0, -2.0], [0.5, 3.0])["hessian"]
    assert (hvp.r_squared, hvp.lambda0) == (1, 1)
    assert hvp.cosine_compensated == pytest.approx(1, abs=1e-6)
    assert hvp.cosine_stale < 0


def test_uniform_is_exact_where_the_curvature_is():
    bowl = lambda w, batch: 2 * jnp.sum(w**2)
    found = explain_quadratic([1.0, -2.0], [0.5, 3.0], bowl)
    assert (found["uniform"].r_squared, found["uniform"].lambda0) == (1, 4)
    assert found["squared_gradient"].r_squared < 1


def test_no_displacement_is_nothing_to_explain():
    for found in explain_quadratic([1.0, -2.0], [1.0, -2.0]).values():
        assert np.isnan(found.r_squared)
        assert (found.lambda0, found.ratio, found.change_norm, found.term_norm) == (0, 0, 0, 0)
        assert found.cosine_stale == found.cosine_compensated == pytest.approx(1)


def test_a_zero_compensation_explains_nothing():
    # Without a gradient at the stale params, its square is no curvature.
    found = explain_quadratic([1.0, -2.0], [0.0, 0.0])
    for name in ("squared_gradient", "adaptive", "absolute"):
        assert (found[name].r_squared, found[name].lambda0, found[name].term_norm) == (0, 0, 0)
        assert np.isnan(found[name].cosine_stale)
        assert np.isnan(found[name].ratio)
    assert (found["hessian"].r_squared, found["hessian"].lambda0) == (1, 1)
    assert found["adaptive"].below_eps == 1


def test_a_negative_multiple_is_reported_and_not_used():
    hill = lambda w, batch: -jnp.sum(w**2)
    found = explain_quadratic([1.0, -2.0], [0.5, 3.0], hill)["squared_gradient"]
    assert found.lambda0 < 0
    assert found.r_squared > 0
    assert found.cosine_compensated == pytest.approx(found.cosine_stale, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_tiny_and_huge_gradients_stay_in_range(scale):
    loss = lambda w, batch: scale * quadratic(w**2, batch)
    args = ([1.0, -2.0], [1.25, -1.5])
    there = explain_quadratic(*args, loss, eps=0.0)
    here = explain_quadratic(*args, lambda w, batch: quadratic(w**2, batch), eps=0.0)
    for name in here:
        assert there[name].r_squared == pytest.approx(here[name].r_squared, rel=1e-4)
    # DC-ASGD-c is not invariant to the scale of the loss, DC-ASGD-a is.
    for name, power in (
        ("squared_gradient", -1),
        ("adaptive", 0),
        ("absolute", 0),
        ("hessian", 0),
        ("uniform", 1),
    ):
        expected = here[name].lambda0 * scale**power
        assert there[name].lambda0 == pytest.approx(expected, rel=1e-4)


def test_adaptive_without_a_mean_square_is_abs(case):
    explain = functools.partial(
        diagnostics.explain, problems.softmax_loss, eps=0.0, names=("adaptive", "absolute")
    )
    found = jax.jit(explain)(*case)
    adaptive, absolute = found["adaptive"], found["absolute"]
    chex.assert_trees_all_close(adaptive._replace(below_eps=0.0), absolute._replace(below_eps=0.0))


@pytest.mark.parametrize("name", ["squared_gradient", "absolute", "fisher", "hessian"])
def test_the_transformation_with_that_lambda0_has_that_cosine(case, name):
    params, stale, batch = case
    loss = problems.softmax_loss
    found = jax.tree.map(float, explained(given=False, per_leaf=False)[name])
    assert found.lambda0 > 0
    each = numpy_gradients(stale, batch)
    tx = dc.compensate_delay(found.lambda0, curvature=getattr(dc.curvatures, name)())
    compensated, _ = tx.update(
        jax.grad(loss)(stale, batch),
        tx.init(params),
        params,
        stale_params=stale,
        fisher_diagonal={k: jnp.asarray((g**2).mean(axis=0)) for k, g in each.items()},
        hessian_vector_product=lambda tangent: jax.jvp(
            lambda w: jax.grad(loss)(w, batch), (stale,), (tangent,)
        )[1],
    )
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    one, other = flat(compensated), flat(jax.grad(loss)(params, batch))
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert found.cosine_compensated == pytest.approx(cosine, rel=1e-9)


def test_pure_under_jit_and_vmap():
    params = problems.softmax_params()
    batches = problems.softmax_batches(3)
    stale = problems.softmax_params(seed=1)
    explain = functools.partial(
        *(diagnostics.explain, problems.softmax_loss, params, stale),
        names=("adaptive", "fisher", "hessian"),
    )
    together = jax.jit(jax.vmap(explain))(batches)
    alone = jax.jit(explain)(jax.tree.map(lambda leaf: leaf[1], batches))
    of_one = jax.tree.map(lambda leaf: leaf[1], together)
    chex.assert_trees_all_close(of_one, alone, rtol=1e-4)


def test_key_is_the_same_for_every_gradient():
    params = problems.softmax_params()
    batch = jax.tree.map(lambda leaf: leaf[0], problems.softmax_batches(1))
    found = diagnostics.explain(
        problems.noisy_loss,
        params,
        params,
        batch,
        key=jax.random.key(0),
        names=["squared_gradient"],
    )
    assert found["squared_gradient"].change_norm == 0


def test_16_bits_are_widened():
    half = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tree)
    params, stale = half(jnp.asarray([1.0, -2.0])), half(jnp.asarray([0.5, 3.0]))
    # Gradients of 1e-25, whose squares bfloat16 and float32 could not hold.
    loss = lambda w, batch: 1e-25 * jnp.sum(w**2)
    found = diagnostics.explain(loss, params, stale, jnp.zeros(1), names=("absolute", "hessian"))
    for numbers in found.values():
        chex.assert_type(numbers, jnp.float32)
        assert numbers.r_squared > 0.1


def test_refused():
    explain = functools.partial(diagnostics.explain, quadratic, jnp.ones(2))
    with pytest.raises(ValueError, match=r"names must be of squared_gradient, .*got 'hvp'"):
        explain(jnp.zeros(2), jnp.zeros(1), names=["squared_gradient", "hvp"])
    with pytest.raises(ValueError, match=r"stale_params.* has shape \(3,\)"):
        explain(jnp.zeros(3), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"mean_square.* has shape \(3,\)"):
        explain(jnp.zeros(2), jnp.zeros(1), mean_square=jnp.zeros(3))
    for batch in (jnp.zeros(()), (jnp.zeros(2), jnp.zeros(3)), jnp.zeros((0, 2))):
        with pytest.raises(ValueError, match="leading axis of samples"):
            explain(jnp.zeros(2), batch, names=["fisher"])
    with pytest.raises(ValueError, match="complex"):
        diagnostics.explain(quadratic, jnp.ones(2) * 1j, jnp.ones(2) * 1j, jnp.zeros(1))


def outputs_of(params, batch):
    return batch[0] @ params["w"] + params["b"][None]


def loss_of(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def explain_directions(case, name, loss_fn=problems.softmax_loss, **options):
    params, stale, batch = case
    return diagnostics.explain(loss_fn, params, stale, batch, names=[name], **options)[name]


def test_a_frozen_jacobian_explains_all_where_the_outputs_are_linear(case):
    found = explain_directions(case, "frozen_jacobian", outputs=(outputs_of, loss_of))
    np.testing.assert_allclose([found.r_squared, found.lambda0], 1.0, rtol=1e-10)
    assert found.cosine_compensated > 1 - 1e-12
    assert found.cosine_stale < 0.999


def test_a_frozen_jacobian_is_that_of_the_stale_point(case):
    """Of outputs that are not linear: Jᵀ(softmax(z + JΔ) - y), the Jacobian by hand."""
    params, stale, batch = case
    bent = lambda params, batch: jnp.tanh(outputs_of(params, batch))
    loss_fn = lambda params, batch: loss_of(bent(params, batch), batch)
    found = explain_directions(case, "frozen_jacobian", loss_fn, outputs=(bent, loss_of))
    images, labels = (np.asarray(part) for part in batch)
    stale = {k: np.asarray(leaf) for k, leaf in stale.items()}
    z = np.tanh(images @ stale["w"] + stale["b"])
    bend = 1 - z**2
    moved = {k: np.asarray(params[k] - stale[k]) for k in ("w", "b")}
    there = z + bend * (images @ moved["w"] + moved["b"])
    softmax = lambda a: np.exp(a) / np.exp(a).sum(axis=1, keepdims=True)
    change = bend * (softmax(there) - softmax(z)) / len(labels)
    term = np.sqrt(np.sum((images.T @ change) ** 2) + np.sum(change.sum(axis=0) ** 2))
    np.testing.assert_allclose(found.term_norm, term, rtol=1e-10)
    assert 0 < found.r_squared < 0.9


@pytest.mark.parametrize("name", ["rows", "rotated"])
def test_directions_are_those_of_the_curvature(case, name):
    params, stale, batch = case
    g, true = numpy_gradient(stale, batch), numpy_gradient(params, batch)
    grads = jax.tree.map(jnp.asarray, g)
    curvature = getattr(dc.curvatures, name)(8)
    state = curvature.init(params)
    for scale in (1.0, -0.3):  # two gradients that came before
        _, state = curvature.update(state, jax.tree.map(lambda x, s=scale: s * x[::-1], grads))
    estimate, _ = curvature.update(state, grads)
    moved = jax.tree.map(jnp.subtract, params, stale)
    term = curvature.term(estimate, grads, moved, 1.0, None)
    flat = lambda tree: np.concatenate([np.ravel(tree[k]) for k in ("w", "b")])
    wanted = numpy_explanation(flat(true) - flat(g), flat(term), flat(g), flat(true))
    options = {"rotated_state": state} if name == "rotated" else {}
    found = explain_directions(case, name, batch_size=8, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-7)
    one = explain_directions(case, name, **options)
    np.testing.assert_allclose(one.lambda0, 8 * found.lambda0, rtol=1e-7)
    if name == "rotated":
        assert abs(explain_directions(case, name).r_squared - found.r_squared) > 1e-3


def test_a_frozen_jacobian_needs_outputs(case):
    with pytest.raises(ValueError, match=r"frozen_jacobian needs outputs=\(outputs_fn, loss_of\)"):
        explain_directions(case, "frozen_jacobian")
