"""The study of local steps: what it declares, one tiny study end to end, and its report."""

import json
import re
import shutil

import numpy as np
import pytest

from dcasgd_jax.commands import ledger

from . import programs
from .conftest import STUDIES

study = programs.load("local_steps")
methods, report = study.methods, study.report
SMALL = ["--gradients", "256", "--width", "8", "--blocks", "1", "--context", "8"]
SMALL += ["--batch-size", "2", "--seeds", "2"]


def test_every_method_is_tuned_with_as_many_configurations():
    tried = {name: method.tried for name, method in methods.METHODS.items()}
    assert {len(numbers) for numbers in tried.values()} == {6}
    assert all(len(set(numbers)) == 6 for numbers in tried.values())
    # A method has a strength for all of its configurations, or for none.
    assert all(len({n.lambda0 is None for n in numbers}) == 1 for numbers in tried.values())


def test_end_to_end(tmp_path, monkeypatch, capsys):
    some = {name: methods.METHODS[name] for name in ("sync-diloco", "async", "dcasgd-a")}
    few = {name: method._replace(tried=method.tried[:2]) for name, method in some.items()}
    monkeypatch.setattr(methods, "METHODS", few)
    options = [*SMALL, "--steps", "2", "--out", str(tmp_path)]
    assert study.main(options) == 0
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / ledger.RESULTS).read_text().splitlines()]
    runs = [line for line in lines if "run" in line]
    assert [(r["run"]["method"], r["run"]["seed"]) for r in runs] == [
        (name, seed) for name in few for seed in (0, 1)
    ]
    size = 4 * sum(leaf.size for leaf in _leaves(options))
    for run in runs:
        assert len(run["validation_loss"]) == len(run["seconds"]) == study.EVALUATIONS
        assert np.all(np.diff(run["seconds"]) > 0)
        assert run["validation_loss"][-1] < run["validation_loss"][0]
        # 256 gradients in pushes of two: as many parameters up as down.
        assert run["megabytes"][-1] == pytest.approx(2 * size * 128 / 1e6)
    hours = {run["run"]["method"]: run["seconds"][-1] for run in runs}
    assert hours["sync-diloco"] > hours["async"]  # it waits for the far workers
    assert "2 local steps" in printed
    assert "synchronous DiLoCo (Nesterov)" in printed
    assert (tmp_path / study.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert study.main(options) == 0  # nothing is left to do
    assert "6 runs, 6 of them" in " ".join(capsys.readouterr().out.split())
    assert study.main(["--report-only", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.partition("2 local steps")[2] in printed


def _leaves(options):
    import jax

    parser = study.argparse.ArgumentParser()
    study.add_options(parser)
    made = study.make_study(parser.parse_args(options))
    workload = made.tasks[0].train.args[0]
    return jax.tree.leaves(workload.problem.params)


def test_the_committed_results_are_those_of_the_page(tmp_path, capsys):
    kept = STUDIES / "results" / "local_steps"
    for name in (ledger.RESULTS, ledger.SETTINGS):
        shutil.copy(kept / name, tmp_path)
    assert study.main(["--report-only", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    page = (STUDIES.parent / "results" / "local_steps.md").read_text(encoding="utf-8")
    losses = re.findall(r"\d\.\d{3}±\d\.\d{3}", said)
    assert len(losses) == 27
    assert all(loss.replace("±", " ± ") in page for loss in losses)


def test_bad_options(tmp_path, capsys):
    out = tmp_path / "out"
    for options, words in (
        (["--steps", "3"], "with --steps 3 it must be a multiple of 384"),
        (["--steps", "0"], "is not an integer >= 1"),
        (["--methods", "magic"], "invalid choice: 'magic'"),
        (["--data-file", str(tmp_path / "nothing"), "--steps", "2"], "cannot be read"),
    ):
        assert study.main([*SMALL, *options, "--out", str(out)]) == 2
        assert words in capsys.readouterr().err
    assert not out.exists()
