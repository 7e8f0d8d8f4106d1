"""`dcasgd-jax reproduce cifar10`, end to end with a tiny network on generated images."""

import contextlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("pyarrow")

from dcasgd_jax import sim
from dcasgd_jax.commands import errors, ledger, study, terminal
from dcasgd_jax.commands.reproduce import experiment, results, settings, table, training

from .. import cli
from ..images import writers

METHODS = ["sgd", "ssgd", "asgd", "dcasgd-capped"]  # the others compile as the last does
OF_A_PROCESS = ("date", "seconds", "gradients_per_second")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    writers.write_cifar_parquet(folder, num_train=98, num_test=21)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A folder with all methods, and what the command said."""
    out = tmp_path_factory.mktemp("finished")
    return out, reproduce(data, out)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy to change."""
    return shutil.copytree(finished[0], tmp_path / "out")


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args):
        raise AssertionError("training began")

    monkeypatch.setattr(training, "train", fail)


def arguments(data, out, *more):
    tiny = ["--model", "tiny", "--batch-size", "8", "--epochs", "4", "--workers", "4"]
    chosen = ["--methods", *METHODS, "--learning-rate", "0.05"]
    return ["reproduce", "cifar10", "--data-dir", data, "--out", out, *tiny, *chosen, *more]


def reproduce(data, out, *more):
    result = cli.call(*arguments(data, out, *more))
    assert result.code == 0, result.err
    return result.out


def of_any_process(lines):
    return {
        results.run_of(line).name: {k: v for k, v in line.items() if k not in OF_A_PROCESS}
        for line in lines
    }


def test_all_methods_are_trained_and_reported(finished):
    out, said = finished
    content = (out / ledger.RESULTS).read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in content.splitlines()]
    assert [line["run"]["method"] for line in lines] == METHODS
    assert not list((out / experiment.CHECKPOINTS).iterdir())
    assert (out / experiment.PICTURE).read_bytes().startswith(b"\x89PNG")
    for line in lines:
        run = results.run_of(line)
        assert f"{run.name}: " in said
        assert run.workers == (1 if run.method == "sgd" else 4)
        assert run.lambda0 == (300 if run.method == "dcasgd-capped" else None)
        assert run.max_pull == (1 if run.method == "dcasgd-capped" else None)
        # 98 images: 12 batches of 8, 3 for each of 4 workers.
        assert line["pushes_per_epoch"] == 12
        assert line["pushes"] == 48
        assert line["updates"] == (12 if run.method == "ssgd" else 48)
        curve = line["curve"]
        assert curve["epoch"] == [2, 4]  # 25 images evaluated for 98 are a little too many
        assert curve["version"] == [line["updates"] // 2, line["updates"]]
        assert curve["samples"] == [192, 384]
        assert line["final"]["test_error"] == curve["test_error"][-1]
        assert round(21 * line["final"]["test_error"], 3).is_integer()
        assert 1 < line["final"]["train_loss"] < 4
        assert line["seconds"] > 0
        assert line["gradients_per_second"] * line["seconds"] == pytest.approx(48, rel=0.01)
        assert line["mean_staleness"] == pytest.approx(
            0 if run.method in ("sgd", "ssgd") else 3, abs=0.3
        )
        assert (line["compensation_ratio"] is not None) == (run.lambda0 is not None)
        assert line["non_finite"] is None
        assert {"jax", "flax", "device"} <= set(line["versions"])
        assert line["settings"]["train_images"] == 98
        assert line["settings"]["learning_rate_decay"]["after_epochs"] == [2, 3]
    by_method = {line["run"]["method"]: line for line in lines}
    times = {name: line["simulated_seconds"] for name, line in by_method.items()}
    assert times["sgd"] > 3 * times["ssgd"] > 3 * times["asgd"]
    assert times["asgd"] == times["dcasgd-capped"]
    assert "8.65" in said
    assert "10.26" not in said  # that is of 8 workers
    assert "scaled down" in said


def test_what_is_there_is_not_trained_again(folder, data, no_training):
    before = (folder / ledger.RESULTS).read_bytes()
    assert "4 runs, 4 of them" in reproduce(data, folder)
    assert (folder / ledger.RESULTS).read_bytes() == before


def test_an_interrupted_run_is_resumed(finished, data, tmp_path, monkeypatch):
    """Stopped in the middle of the second run; the lines are those of an uninterrupted call."""
    told = []

    @contextlib.contextmanager
    def interrupted(total):
        def advance(name, count):
            told.append((name.partition(" ")[0], count))
            if sum(count for name, count in told if name == "dcasgd-capped") >= 24:
                raise KeyboardInterrupt

        yield terminal.Progress(advance, lambda text: None)

    chosen = ["--methods", "asgd", "dcasgd-capped"]
    with monkeypatch.context() as patch:
        patch.setattr(terminal, "progress_bar", interrupted)
        stopped = cli.call(*arguments(data, tmp_path, *chosen))
    assert stopped.code == 130
    assert [results.run_of(line).method for line in results.read(tmp_path)] == ["asgd"]
    (checkpoints,) = (tmp_path / experiment.CHECKPOINTS).glob("dcasgd-capped*0")
    assert max(int(path.stem) for path in checkpoints.glob("*.npz")) >= 12
    assert "2 runs, 1 of them" in reproduce(data, tmp_path, *chosen)
    lines = results.read(tmp_path)
    assert [results.run_of(line).method for line in lines] == ["asgd", "dcasgd-capped"]
    expected = of_any_process(results.read(finished[0]))
    for name, line in of_any_process(lines).items():
        assert line == expected[name]
    assert not list((tmp_path / experiment.CHECKPOINTS).iterdir())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--epochs", 5, "epochs 4, not 5"),
        ("--batch-size", 4, "batch_size 8, not 4"),
        ("--momentum", 0.9, "momentum 0.0, not 0.9"),
        ("--law", "exponential", 'law "gamma", not "exponential"'),
        ("--subset", 64, "train_images 98, not 64"),
        ("--batch-norm", "server", 'batch_norm "per_worker", not "server"'),
    ],
)
def test_other_settings_are_refused(folder, data, no_training, option, value, words):
    before = (folder / ledger.RESULTS).read_bytes()
    refused = cli.call(*arguments(data, folder, option, value))
    assert refused.code == 2
    assert words in refused.err
    assert (folder / ledger.RESULTS).read_bytes() == before


def test_a_run_that_has_begun_fixes_the_settings(data, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    assert cli.call(*arguments(data, tmp_path)).code == 130
    refused = cli.call(*arguments(data, tmp_path, "--epochs", 6))
    assert "epochs 4, not 6" in refused.err


@pytest.mark.parametrize("left", [b"", b"\n", b'{"run": {"meth', b"\xce"], ids=repr)
def test_a_torn_last_line_is_no_result(folder, data, monkeypatch, left):
    path = folder / ledger.RESULTS
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + (whole[-1][:-1] if left == b"" else left))
    trained = []

    def fake(workload, run, method, directory, progress):
        assert method.name == run.method
        trained.append(run.method)
        line = json.loads(whole[-1])
        del line["settings"], line["run"]
        return line

    monkeypatch.setattr(training, "train", fake)
    reproduce(data, folder)
    assert trained == ["dcasgd-capped"]
    assert [json.loads(line) for line in path.read_bytes().splitlines() if line] == [
        json.loads(line) for line in whole
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"what?\n",
        b"{}\n",
        b"3\n",
        b'{"run": {"method": "asgd"}}\n',
        b"\xff\n",
        b"[" * 99_999 + b"\n",
    ],
    ids=lambda line: str(line[:20]),
)
def test_another_damaged_line_is_named(folder, line):
    path = folder / ledger.RESULTS
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([whole[0], line, *whole[1:]]))
    refused = cli.call("reproduce", "cifar10", "--report-only", "--out", folder)
    assert refused.code == 2
    assert "results.jsonl, line 2," in refused.err
    assert refused.err.count("\n") == 1


def without_a_field(value, path=()):
    """Every way to leave out one field of a line, or to have nonsense in it."""
    for name in list(value):
        for change in (lambda d, name=name: d.pop(name), lambda d, name=name: d.update({name: {}})):
            changed = json.loads(json.dumps(value))
            change(changed)
            yield (*path, name), changed
        if isinstance(value[name], dict):
            for inner, changed in without_a_field(value[name], (*path, name)):
                yield inner, {**value, name: changed}


def test_a_line_without_a_field_is_named_or_is_not_needed(folder):
    """Either one line of an error, or the report can be made without the field."""
    path = folder / ledger.RESULTS
    whole = path.read_bytes().splitlines(keepends=True)
    refused = {}
    for field, changed in without_a_field(json.loads(whole[1])):
        path.write_bytes(b"".join([whole[0], json.dumps(changed).encode() + b"\n", *whole[2:]]))
        try:
            lines = results.read(folder)
        except errors.UsageError as error:
            refused[field] = str(error)
            continue
        console = terminal.make_console()
        table.make_table(console, lines)
        table.explanation(lines)
        table.title(lines)
        table.best_rows(lines)
    for message in refused.values():
        assert "results.jsonl, line 2, is no result of dcasgd-jax reproduce (" in message
        assert message.endswith("): remove it")
    needed = {("run",), ("run", "seed"), ("final", "test_error"), ("curve", "epoch")}
    assert needed <= refused.keys()
    assert ("date",) not in refused


APPEND = """
import pathlib, sys
from dcasgd_jax.commands import ledger
book = ledger.Ledger(pathlib.Path(sys.argv[1]), "a test", lambda line: None)
for k in range(150):
    book.append({"run": {"seed": k, "method": sys.argv[2]}})
"""


def any_ledger(folder):
    return ledger.Ledger(folder, "a test", lambda line: None)


def test_two_processes_lose_no_line(tmp_path):
    early = any_ledger(tmp_path)
    command = [sys.executable, "-c", APPEND, str(tmp_path)]
    children = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / ledger.RESULTS).read_text().splitlines()]
    assert [line["run"]["seed"] for line in lines if line["run"]["method"] == "a"] == [*range(150)]
    assert [line["run"]["seed"] for line in lines if line["run"]["method"] == "b"] == [*range(150)]
    assert len(lines) == 300
    again = {"run": {"seed": 7, "method": "a"}, "of": "another"}
    assert "of" not in early.append(again)  # somebody else has finished it
    assert early.lines() == lines == any_ledger(tmp_path).lines()
    assert len((tmp_path / ledger.RESULTS).read_text().splitlines()) == 300


def test_a_ledger_reads_a_line_once(tmp_path, monkeypatch):
    first, second = any_ledger(tmp_path), any_ledger(tmp_path)
    checked = []
    parse = ledger.Ledger._parse
    monkeypatch.setattr(
        ledger.Ledger, "_parse", lambda self, text: (checked.append(text), parse(self, text))[1]
    )
    kept = [first.append({"run": {"seed": seed}, "loss": np.nan}) for seed in range(5)]
    assert kept[0] == {"run": {"seed": 0}, "loss": None}  # as JSON has it
    assert not checked  # its own lines it knows
    second.append({"run": {"seed": 5}})
    with (tmp_path / ledger.RESULTS).open("ab") as stream:
        stream.write(b'{"run": {"se')  # torn
    second.refresh()
    first.append({"run": {"seed": 6}})
    assert len(checked) == 6
    assert [line["run"]["seed"] for line in first.lines()] == [*range(7)]
    assert first.find(run={"seed": 3}) == kept[3]
    assert first.find(run={"seed": 9}) is None
    text = (tmp_path / ledger.RESULTS).read_text()
    assert text.count("\n") == 7
    (tmp_path / ledger.RESULTS).write_text(text[: text.index("\n") + 1])  # a user removes some
    first.append({"run": {"seed": 1}})
    assert first.lines() == any_ledger(tmp_path).lines() == [kept[0], {"run": {"seed": 1}}]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "line 1: Expecting"), ("[]", "[] is no JSON object"), ("\xff", "decode byte")],
)
def test_damaged_settings_are_named_in_one_line(folder, data, no_training, content, words):
    (folder / ledger.SETTINGS).write_bytes(content.encode("latin-1"))
    refused = cli.call(*arguments(data, folder))
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "settings.json is no result of dcasgd-jax reproduce, or damaged" in refused.err
    assert words in refused.err


def test_a_report_needs_only_the_lines(folder, no_training, monkeypatch):
    """With eight workers the paper has more to compare with; the best learning rate is drawn."""
    lines = results.read(folder)
    (folder / ledger.RESULTS).unlink()
    (folder / experiment.PICTURE).unlink()
    for line in lines:
        for seed, error in ((0, 0.10), (1, 0.12)):
            line["run"] |= {"workers": 8 if line["run"]["method"] != "sgd" else 1, "seed": seed}
            line["final"]["test_error"] = error
            any_ledger(folder).append(line)
    lines[2]["run"]["learning_rate"] = 0.5
    lost = {"curve": {"epoch": []}, "diverged": True, "final": dict.fromkeys(lines[2]["final"])}
    lost["compensation_ratio"] = {"median": 0.5, "max": None}  # infinite, which JSON has not
    any_ledger(folder).append(lines[2] | lost)
    (folder / ledger.SETTINGS).unlink()
    report = cli.call("reproduce", "cifar10", "--report-only", "--out", folder)
    assert report.code == 0, report.err
    for words in ("11.00 ± 1.41", "10.26", "10.10", "8.65", "0.5    inf  1/1 div."):
        assert words in report.out
    assert (folder / experiment.PICTURE).exists()


def test_nothing_to_report(tmp_path):
    refused = cli.call("reproduce", "cifar10", "--report-only", "--out", tmp_path)
    assert refused.code == 2
    assert "no finished run" in refused.err


def test_out_of_device_memory_says_what_needs_less(data, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 12 GiB.\nMore text.")

    monkeypatch.setattr(sim, "simulate", fail)
    failed = cli.call(*arguments(data, tmp_path))
    assert failed.code == 2
    for option in ("--batch-size", "--workers", "--dtype", "--eval-batch-size", "12 GiB"):
        assert option in failed.err


def test_a_run_that_blows_up_is_a_result(data, tmp_path):
    """Its line says where; the table does not take its error."""
    rates = ["--learning-rate", "asgd=1e38", "--methods", "asgd"]
    said = reproduce(data, tmp_path, *rates)
    (line,) = results.read(tmp_path)
    assert line["diverged"]
    assert line["non_finite"]["event"] < 20
    assert set(line["final"].values()) == {None}
    assert "diverged" in said
    assert "1/1 div." in said


BAD = {
    "no experiment": (["reproduce"], ["EXPERIMENT"]),
    "too many images": (["--subset", "99"], ["--subset 99", "98 such images"]),
    "too many test images": (["--test-subset", "22"], ["--test-subset 22", "21 such images"]),
    "no batch for each": (["--workers", "13"], ["98 training images", "104"]),
    "no epoch": (["--epochs", "0"], ["--epochs", "integer >= 1"]),
    "unknown method": (["--methods", "adam"], ["adam", "dcasgd-capped"]),
    "unknown law": (["--law-param", "scale=2"], ["scale=2", "shape and mean"]),
    "rate of nobody": (["--learning-rate", "adam=1"], ["adam"]),
    "rate of zero": (["--learning-rate", "0"], ["> 0"]),
    "lambda0 of asgd": (["--lambda0", "asgd=1"], ["asgd has no lambda0"]),
    "negative cap": (["--max-pull", "-1"], ["--max-pull", ">= 0"]),
    "momentum of one": (
        ["--momentum", "1"],
        ["--momentum", "'1' is not a finite number in [0, 1)"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused(name, data, tmp_path, no_training):
    given, words = BAD[name]
    command = given if given == ["reproduce"] else arguments(data, tmp_path, *given)
    refused = cli.call(*command)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    for word in words:
        assert word in refused.err


def test_without_data_the_files_are_named(tmp_path, no_training):
    refused = cli.call("reproduce", "cifar10", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "train-00000-of-00001.parquet" in refused.err


def test_every_value_makes_a_run_and_the_first_seed_comes_first(tmp_path, monkeypatch):
    found = []

    def stop(job, console):
        of_job = experiment.make_study(job, None, {}, 98)
        for task, seeds in study.in_order(of_job):
            found.extend(task.key(study.Member(task.tried[0], seed)) for seed in seeds)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "_run_missing", stop)
    more = ["--methods", "asgd", "sgd", "dcasgd-a", "--workers", "2", "4", "--seeds", "2"]
    values = ["--learning-rate", "0.1", "asgd=0.1,0.2", "--lambda0", "30,2"]
    few = ["--batch-size", "8"]
    assert cli.call("reproduce", "cifar10", "--out", tmp_path, *few, *more, *values).code == 130
    trained = [settings.Run(**run) for run in found]
    assert len(trained) == 2 * (2 * 2 + 1 + 2 * 2)
    assert [run.seed for run in trained] == [0] * 9 + [1] * 9
    assert trained[:5] == [
        settings.Run("asgd", 2, 0.1, None, None, 0),
        settings.Run("asgd", 2, 0.2, None, None, 0),
        settings.Run("sgd", 1, 0.1, None, None, 0),
        settings.Run("dcasgd-a", 2, 0.1, 2.0, None, 0),
        settings.Run("dcasgd-a", 2, 0.1, 30.0, None, 0),
    ]
    assert len({run.name for run in trained}) == len(trained)
    assert np.unique([run.workers for run in trained]).tolist() == [1, 2, 4]
