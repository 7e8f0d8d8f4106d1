"""The study of the transformer: its task, what it declares, a tiny one end to end, its report."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from dcasgd_jax.commands import ledger

from . import programs
from .conftest import STUDIES

study = programs.load("transformer")
methods, report, characters = study.methods, study.report, study.characters
SMALL = ["--updates", "32", "--width", "8", "--blocks", "1", "--context", "8"]
SMALL += ["--batch-size", "2", "--workers", "2"]


def test_every_tuned_method_has_as_many_configurations_with_the_sequential_rate_among_them():
    for method in methods.METHODS.values():
        tried = method.tried()
        assert len(set(tried)) == len(tried) == (methods.NUM_CONFIGURATIONS if method.tuned else 1)
        rates = {numbers.learning_rate for numbers in tried}
        assert methods.SEQUENTIAL_RATE[method.optimizer] in rates
        assert max(rates) == methods.HIGHEST_RATE[method.optimizer] or not method.tuned


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_makes_an_optimizer(name):
    method, place = methods.METHODS[name], methods.Place(workers=4, updates=100, terms=16)
    tx = method.make(place, 0.01, 4.0)
    params = {"w": jnp.ones((2, 3))}
    told = {"stale_params": {"w": jnp.zeros((2, 3))}}
    update = optax.with_extra_args_support(tx).update
    updates, _ = jax.eval_shape(lambda: update(params, tx.init(params), params, **told))
    assert updates["w"].shape == (2, 3)
    assert method.send is None or callable(method.send(place))


def test_the_best_temperature_is_found():
    generator = np.random.default_rng(0)
    labels = jnp.asarray(generator.integers(5, size=(4, 6)))
    guesses = 1.0 * jax.nn.one_hot(labels, 5)
    for size in (0.1, 1.0, 6.0):
        logits = jnp.asarray(size * (generator.normal(size=(4, 6, 5)) + guesses), jnp.float32)
        loss = lambda log_scale, logits=logits: float(
            optax.softmax_cross_entropy_with_integer_labels(
                np.exp(log_scale) * logits, labels
            ).mean()
        )
        best = optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded").fun
        found = float(characters.tempered_loss(logits, labels))
        assert found == pytest.approx(best, rel=1e-4)
        assert found <= loss(0.0)
        assert found == pytest.approx(float(characters.tempered_loss(2 * logits, labels)), rel=1e-4)


def test_the_task_predicts_the_next_character():
    data = characters.text.generate(num_characters=4000)
    task = characters.Task(data, characters.Setting(width=8, blocks=1, context=8))
    starts = task.starts(seed=3, shape=(2, 4))
    assert np.array_equal(starts, task.starts(3, (2, 4)))
    assert not np.array_equal(starts, task.starts(4, (2, 4)))
    assert starts.max() + 8 < len(data.train)
    params = task.params(0)
    windows = np.stack([data.train[s : s + 9] for s in starts[0]])
    logits = task._model(params, jnp.asarray(windows[:, :-1]))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
    np.testing.assert_allclose(task.loss_fn(params, starts[0]), losses.mean(), rtol=1e-5)
    assert float(task.tempered_loss(params)) <= float(task.validation_loss(params)) + 1e-6


def test_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "NUM_CONFIGURATIONS", 2)
    names = ["sgd", "asgd", "sgd-rows-4"]
    # As many runs as two configurations on three tuning seeds: they share their programs.
    options = [*SMALL, "--seeds", "6", "--methods", *names, "--out", str(tmp_path)]
    assert study.main(options) == 0
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / ledger.RESULTS).read_text().splitlines()]
    runs = [line for line in lines if "run" in line]
    assert [(r["run"]["workers"], r["run"]["method"], r["run"]["seed"]) for r in runs] == [
        (workers, name, seed)
        for workers, name in ((1, "sgd"), (2, "asgd"), (2, "sgd-rows-4"))
        for seed in range(6)
    ]
    for run in runs:
        assert len(run["validation_loss"]) == study.EVALUATIONS
        assert run["validation_loss"][-1] == run["last_loss"] < run["validation_loss"][0]
        assert run["tempered_loss"] <= run["last_loss"]
    assert [line["tuned"]["method"] for line in lines if "tuned" in line] == ["sgd", "asgd"]
    assert "sgd, validation loss, best temperature" in " ".join(printed.split())
    assert "rows(), λ0 = 4 *" in printed
    assert (tmp_path / study.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert study.main(options) == 0  # nothing is left to do
    assert "18 runs, 18 of them" in " ".join(capsys.readouterr().out.split())
    assert study.main(["--report-only", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.partition("sgd, validation")[2] in printed


def test_shares_are_of_the_gap_between_the_means_and_divergence_is_said():
    def line(workers, method, seed, loss):
        run = {"workers": workers, "method": method, "seed": seed, "learning_rate": 1.0}
        return {"run": {**run, "lambda0": None}, "last_loss": loss, "tempered_loss": loss}

    lines = [line(1, "sgd", seed, loss) for seed, loss in enumerate((1.0, 3.0))]
    lines += [line(4, "asgd", seed, loss) for seed, loss in enumerate((5.0, 7.0))]
    lines += [line(4, "sgd-rotated", 0, 4.0), line(4, "sgd-rotated", 1, None)]
    runs = report.frame(lines)
    shares = report.closed(runs, "last_loss")
    np.testing.assert_allclose(shares.iloc[:5], [np.nan, np.nan, 25, -25, 50])
    runs = runs.assign(closed=shares)
    cell = lambda name: report._cell("sgd", name, "last_loss", runs)
    assert cell("asgd") == "6.000 ± 12.706"
    assert cell("sgd-rotated") == "50, 1 of 2 div."


def test_the_committed_results_are_those_of_the_page(tmp_path, capsys):
    kept = STUDIES / "results" / "transformer"
    for name in (ledger.RESULTS, ledger.SETTINGS):
        shutil.copy(kept / name, tmp_path)
    assert study.main(["--report-only", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    page = (STUDIES.parent / "results" / "transformer.md").read_text(encoding="utf-8")
    rows = re.findall(r"^(\S.*?) {2,}(\S.*?)$", said, re.MULTILINE)
    cells = [
        (title, re.split(r" {2,}", rest)) for title, rest in rows if not title.startswith("method")
    ]
    lines = (kept / ledger.RESULTS).read_text(encoding="utf-8").splitlines()
    trained = {line["run"]["method"] for line in map(json.loads, lines) if "run" in line}
    assert len(cells) == 2 * len(trained) >= 20
    for title, numbers in cells:
        assert f"| {title} | {' | '.join(numbers)} |" in page


def test_bad_options(tmp_path, capsys):
    out = tmp_path / "out"
    for options, words in (
        (["--updates", "33"], "must be a multiple of 16"),
        (["--workers", "1"], "is not an integer >= 2"),
        (["--methods", "magic"], "invalid choice: 'magic'"),
        (["--data-file", str(tmp_path / "nothing")], "cannot be read"),
    ):
        assert study.main([*SMALL, *options, "--out", str(out)]) == 2
        assert words in capsys.readouterr().err
    assert not out.exists()
