"""The study of all of CIFAR-10: what it declares, one tiny study end to end, and its report."""

import json
import math
import shutil

import pytest

pytest.importorskip("flax")
pytest.importorskip("pyarrow")

from commands.images import writers

from dcasgd_jax.commands import catalogue, ledger, study

from . import programs
from .conftest import STUDIES

cifar10 = programs.load("cifar10")
report = cifar10.report


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    writers.write_cifar_parquet(folder, num_train=98, num_test=21)
    return folder


def line(method, error, workers=8, momentum=None, seed=0, lambda0=None):
    return {
        "run": {
            "workers": workers, "momentum": momentum, "method": method, "seed": seed,
            "learning_rate": 0.1, "lambda0": lambda0,
        },
        "diverged": error is None,
        "final": {"test_error": error, "test_loss": error, "train_loss": error},
        "curve": {"epoch": [1.0, 2.0], "test_error": [0.9, error or 0.9]},
        "mean_staleness": 7.0,
        "simulated_seconds": 100.0,
        "seconds": 1.0,
    }  # fmt: skip


def test_what_is_closed_is_a_share_of_the_gap_in_test_error():
    lines = [
        *[line("sgd", error, workers=1, seed=i) for i, error in enumerate((0.2, 0.3))],
        *[line("asgd", error, seed=i) for i, error in enumerate((0.4, 0.5))],
        *[line("rotated", error, seed=i, lambda0=1.0) for i, error in enumerate((0.25, 0.45))],
        line("asgd", 0.65, workers=16),
        line("rotated", 0.45, workers=16),
        line("rows", None, workers=16),
        line("sgd", 0.1, workers=1, momentum=0.9),
        line("asgd", 0.2, momentum=0.9),
        line("rotated", 0.1, momentum=0.9),
    ]
    runs = report.frame(lines)
    closed = lambda **place: [
        row["closed"]
        for _, row in runs.iterrows()
        if all(row[name] == value for name, value in place.items())
    ]
    assert closed(method="rotated", workers=8, momentum=0.0) == pytest.approx([100.0, 0.0])
    assert closed(method="rotated", workers=16) == pytest.approx([50.0])
    assert all(map(math.isnan, closed(method="rows")))
    assert closed(method="rotated", momentum=0.9) == pytest.approx([100.0])


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_every_method_is_tried_as_often_over_the_same_rates(momentum):
    names = cifar10.PLAIN if momentum is None else cifar10.WITH_MOMENTUM
    there = catalogue.methods_for(8, 3900, momentum)
    ranges = set()
    for name in names:
        tried = cifar10.configurations(name, momentum)
        assert len(set(tried)) == cifar10.NUM_CONFIGURATIONS
        assert (tried[0].lambda0 is None) == (not there[name].compensates)
        ranges.add((tried[0].learning_rate, tried[-1].learning_rate))
    assert len(ranges) == 1
    assert set(names) <= set(report.TITLES)


def options(data, out, *more):
    tiny = ["--batch-size", "8", "--epochs", "2", "--tuning-epochs", "1", "--seeds", "2"]
    return ["--data-dir", str(data), "--out", str(out), *tiny, "--workers", "4", *more]


def test_end_to_end_and_on_after_an_interruption(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar10, "NUM_CONFIGURATIONS", 2)
    monkeypatch.setattr(cifar10, "LAMBDA0", {"rows": (1.0,)})
    monkeypatch.setattr(cifar10, "WITH_MOMENTUM", ("asgd",))
    chosen = options(data, tmp_path, "--methods", "sgd", "asgd", "rows", "--momentum", "0", "0.9")
    train, calls = cifar10.training.train, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(cifar10.training, "train", killed)
    assert cifar10.main(chosen) == 130
    monkeypatch.setattr(cifar10.training, "train", train)
    assert cifar10.main(chosen) == 0
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / ledger.RESULTS).read_text().splitlines()]
    runs = [line["run"] for line in lines if "run" in line]
    assert [(run["method"], run["workers"], run["momentum"]) for run in runs[::2]] == [
        ("sgd", 1, None), ("asgd", 4, None), ("rows", 4, None), ("asgd", 4, 0.9),
    ]  # fmt: skip
    assert [run["seed"] for run in runs] == [0, 1] * 4
    tuned = [line for line in lines if "tuned" in line]
    assert {tuple(line["tried"]["seed"]) for line in tuned} == {(study.TUNING_SEEDS[0],) * 2}
    assert "4 workers, momentum 0.9" in printed
    assert "rows(), capped" in printed
    assert not list((tmp_path / cifar10.CHECKPOINTS).iterdir())
    assert (tmp_path / cifar10.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert cifar10.main(["--report-only", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.partition("4 workers")[2] in printed
    assert cifar10.main([*chosen, "--epochs", "3"]) == 2
    assert "have epochs 2, not 3" in capsys.readouterr().err


def test_the_committed_results_are_reported(tmp_path, capsys):
    """The page has the tables; the program goes on from these runs."""
    kept = STUDIES / "results" / "cifar10"
    for name in (ledger.RESULTS, ledger.SETTINGS):
        shutil.copy(kept / name, tmp_path)
    assert cifar10.main(["--report-only", "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "sequential SGD 0.426 - 27.92 ± 0.71" in said
    assert "asynchronous SGD 0.073 - 39.08 ± 1.74" in said
    page = (STUDIES.parent / "results" / "cifar10_whole.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for row in rows:
        assert " ".join(row.strip("|").replace(" | ", " ").split()) in said
    assert len(rows) == 3 * (8 + 1) + 3 * (6 + 1)  # with heads, the last three with momentum


BAD = {
    "workers": (["--workers", "1"], "is not an integer >= 2"),
    "momentum": (["--momentum", "1"], "--momentum"),
    "images": (["--workers", "16"], "98 training images are no batch of 8 for each worker"),
    "subset": (["--subset", "99"], "--subset 99: the data has 98 such images"),
    "method": (["--methods", "hessian"], "invalid choice: 'hessian'"),
    "data": (["--data-dir", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name, data, tmp_path, capsys):
    more, words = BAD[name]
    assert cifar10.main(options(data, tmp_path / "out", *more)) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
