"""What is refused, how it is said, and that it is said before any work."""

import os
import subprocess
import sys

import pytest

from dcasgd_jax import extras
from dcasgd_jax.commands import records, runs

from . import cli

BAD = {
    "no subcommand": ([], ["SUBCOMMAND"]),
    "unknown subcommand": (["train-it"], ["train-it", "compare"]),
    "unknown method": (["compare", "--methods", "asgd", "adam"], ["adam", "dcasgd-capped"]),
    "unknown law": (["compare", "--law", "weibull"], ["weibull", "gamma", "pareto"]),
    "unknown model": (["compare", "--model", "resnet"], ["resnet", "mlp"]),
    "unknown option": (["compare", "--gpus", "2"], ["--gpus"]),
    "abbreviated option": (["compare", "--work", "2"], ["--work"]),
    "unknown law parameter": (["compare", "--law-param", "scale=2"], ["scale=2", "shape and mean"]),
    "law parameter without value": (["compare", "--law-param", "shape"], ["shape", "NAME=VALUE"]),
    "law parameter no number": (["compare", "--law-param", "shape=x"], ["shape=x", "number"]),
    "law parameter out of range": (["compare", "--law-param", "mean=-1"], ["mean", "positive"]),
    "law parameter NaN": (["compare", "--law-param", "mean=nan"], ["mean", "positive"]),
    "law for other workers": (["compare", "--law-param", "mean=1,2"], ["2 values", "8 workers"]),
    "law that refuses": (
        ["compare", "--law", "pareto", "--law-param", "alpha=1"],
        ["alpha", "> 1"],
    ),
    "no worker": (["compare", "--workers", "0"], ["--workers", "integer >= 1"]),
    "half a worker": (["compare", "--workers", "1.5"], ["--workers", "1.5"]),
    "no seed": (["compare", "--seeds", "0"], ["--seeds"]),
    "seeds that tuning uses": (["compare", "--seeds", "101"], ["--seeds 101", "at most 100"]),
    "no image": (["compare", "--batch-size", "0"], ["--batch-size"]),
    "batch too large": (["compare", "--batch-size", "1348"], ["--batch-size 1348", "1347"]),
    "no update": (["compare", "--updates", "-5"], ["--updates"]),
    "too few updates": (["compare", "--updates", "31"], ["--updates 31", "at least 32"]),
    "learning rate no number": (["compare", "--learning-rate", "high"], ["high", "number"]),
    "learning rate zero": (["compare", "--learning-rate", "0"], ["--learning-rate 0", "> 0"]),
    "learning rate infinite": (["compare", "--learning-rate", "inf"], ["inf", "finite"]),
    "learning rate of nobody": (["compare", "--learning-rate", "adam=1"], ["adam", "ssgd"]),
    "learning rate of another": (
        ["compare", "--methods", "sgd", "--learning-rate", "asgd=1"],
        ["asgd", "not among --methods"],
    ),
    "several rates without tune": (["compare", "--learning-rate", "1,2"], ["1,2", "--tune"]),
    "lambda0 negative": (["compare", "--lambda0", "-1"], ["--lambda0"]),
    "lambda0 below zero": (["compare", "--lambda0=-1"], ["--lambda0 -1", ">= 0"]),
    "lambda0 of asgd": (["compare", "--lambda0", "asgd=1"], ["asgd has no lambda0", "dcasgd-c"]),
    "lambda0 for nobody": (["compare", "--methods", "sgd", "--lambda0", "1"], ["--lambda0 1"]),
}


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("work began")

    monkeypatch.setattr(runs, "make_workload", fail)


def assert_one_line(result, *parts):
    assert result.out == ""
    assert result.err.startswith("dcasgd-jax")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_line_and_exit_2(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, parts = BAD[case]
    result = cli.call(*arguments)
    assert result.code == 2
    assert_one_line(result, *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("below", ["", "results", "a/b"])
def test_out_that_cannot_be_written_is_found_before_the_run(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    result = cli.call("compare", "--out", file / below)
    assert result.code == 2
    assert_one_line(result, f"--out {file / below}", "choose another folder")
    assert file.read_text() == "mine"


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["compare.json", "compare.png", "results.jsonl"])
def test_out_where_a_folder_has_the_name_of_a_result(tmp_path, name):
    (tmp_path / name).mkdir()
    result = cli.call("compare", "--out", tmp_path)
    assert result.code == 2
    assert_one_line(result, name, "choose another folder")


@pytest.mark.usefixtures("no_training")
def test_out_on_a_full_or_read_only_disk(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(records.tempfile, "TemporaryFile", refuse)
    result = cli.call("compare", "--out", tmp_path)
    assert result.code == 2
    assert_one_line(result, str(tmp_path), "Read-only file system")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("package", "called"),
    [
        ("sklearn", "scikit-learn"),
        ("matplotlib", "matplotlib"),
        ("rich", "rich"),
        ("pandas", "pandas"),
    ],
)
def test_missing_extra_says_what_to_install(tmp_path, monkeypatch, package, called):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    result = cli.call("compare", "--out", tmp_path / "out")
    assert result.code == 2
    assert_one_line(result, called, 'pip install "dcasgd-jax[commands]"')
    assert not (tmp_path / "out").exists()


def test_an_interrupted_comparison_keeps_what_is_finished(tmp_path, monkeypatch):
    trained, train = [], runs.train_with_curves

    def interrupted(setting, method, members, progress):
        if method.name == "asgd":
            raise KeyboardInterrupt
        trained.append(method.name)
        return train(setting, method, members, progress)

    arguments = ("compare", *cli.TINY, "--methods", "sgd", "asgd", "--learning-rate", "0.5")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "train_with_curves", interrupted)
        result = cli.call(*arguments, "--out", tmp_path)
    assert result.code == 130
    assert result.err.splitlines()[-1] == "dcasgd-jax compare: error: interrupted"
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 2
    result = cli.call(*arguments, "--out", tmp_path)
    assert result.code == 0
    assert "4 runs, 2 of them in" in result.out
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 4
    assert "Note" not in result.out


def test_disk_full_at_the_end_is_one_line_after_the_table(tmp_path, monkeypatch):
    write = records.write_json

    def refuse(path, content):
        if path.name == "compare.json":
            raise OSError(28, os.strerror(28), str(path))
        write(path, content)

    monkeypatch.setattr(records, "write_json", refuse)
    result = cli.call(
        *("compare", *cli.TINY, "--methods", "sgd", "--learning-rate", "1", "--out", tmp_path)
    )
    assert result.code == 1
    assert "No space left" in result.err.splitlines()[-1]
    assert "\nsgd " in result.out


def run_python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_module_prints_its_version():
    done = run_python("-m", "dcasgd_jax", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dcasgd-jax 0.1.0\n", "")


def test_help_is_complete_and_loads_none_of_the_heavy_packages():
    program = (
        "import sys; from dcasgd_jax.__main__ import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(code, sorted({'sklearn', 'matplotlib', 'rich', 'pandas'} & set(sys.modules)))"
    )
    done = run_python("-c", program)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0 []"
    for name in ("--tune", "--law-param", "dcasgd-capped", "lognormal", "pushed gradients"):
        assert name in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_bad_arguments_leave_the_process_with_code_2_and_no_traceback():
    done = run_python("-m", "dcasgd_jax", "compare", "--law", "weibull")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
