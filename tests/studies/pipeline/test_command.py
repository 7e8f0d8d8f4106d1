"""The program `shakespeare.py` end to end on a generated text, resumed, and what it refuses."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("flax")

from commands import cli
from pipeline import methods, settings, text, training

from dcasgd_jax.commands import ledger, study

from .. import programs
from ..conftest import STUDIES

shakespeare = programs.load("shakespeare")

TINY = [
    *("--width", "4", "--blocks", "1", "--heads", "1", "--context", "4", "--batch-size", "2"),
    *("--updates", "16", "--seeds", "2", "--optimizers", "adam", "--delays", "2"),
]
BOTH = ["--methods", "uncorrected", "prediction"]


@pytest.fixture
def few(monkeypatch):
    """Few configurations and a short text."""
    monkeypatch.setattr(study, "TUNING_SEEDS", (100, 101))
    monkeypatch.setattr(methods, "RATES", (0.001, 0.004, 0.016))
    monkeypatch.setattr(methods, "FEWER_RATES", (0.01,))
    generate = functools.partial(text.generate, num_characters=2000)
    monkeypatch.setattr(text, "generate", generate)


@pytest.fixture
def invented(few, monkeypatch):
    """No training: curves that fall faster for larger seeds and smaller learning rates."""

    def train(workload, optimizer, delay, method, members, progress):
        falls = np.linspace(1, 0.5, settings.EVALUATIONS + 1)
        for numbers, seed in members:
            curve = (4 * falls ** (1 + seed / 1000 - numbers.learning_rate)).tolist()
            yield {"train_loss": curve[1:], "validation_loss": curve}

    monkeypatch.setattr(training, "train", train)


def call(out, *options):
    return cli.call("--generated", *TINY, "--out", out, *options, program=shakespeare.main)


def read(out):
    return [json.loads(line) for line in (out / ledger.RESULTS).read_text().splitlines()]


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in ("date", "seconds")} for line in lines]


@pytest.mark.usefixtures("few")
def test_end_to_end(tmp_path):
    result = call(tmp_path)
    assert result.code == 0, result.err
    lines = read(tmp_path)
    # 6 cells: without delay, and 5 methods with it; each is tuned, then run with 2 seeds.
    assert len([line for line in lines if "tuned" in line]) == 6
    runs = [line for line in lines if "run" in line]
    assert len(runs) == 12
    assert "12 runs, 0 of them in " in result.out
    # 3 learning rates without delay; with it 3 + 2 + 2 + 3 + 2 configurations; 2 seeds of each.
    assert "6 methods to tune first, 30 runs." in result.out
    saved = cli.strict_json(tmp_path / ledger.SETTINGS)
    assert text.generate().describe().items() <= saved.items()
    assert (saved["text"], saved["updates"]) == ("generated", 16)
    for line in runs:
        assert len(line["validation_loss"]) == len(line["train_loss"]) + 1 == 17
    starts = {line["run"]["seed"]: line["validation_loss"][0] for line in runs}
    assert len(set(starts.values())) == 2
    for line in runs:
        assert line["validation_loss"][0] == starts[line["run"]["seed"]]
    for name in methods.METHODS:
        assert name in result.out
    lines = [line for line in result.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert (tmp_path / "shakespeare.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [ledger.RESULTS, ledger.SETTINGS, "shakespeare.png"]
    tables = result.out.partition("adam without delay")[2]
    again = cli.call("--report-only", "--out", tmp_path, program=shakespeare.main)
    assert again.out.partition("adam without delay")[2] == tables


@pytest.mark.usefixtures("invented")
def test_an_interrupted_call_ends_as_if_it_never_was(tmp_path, monkeypatch):
    assert call(tmp_path / "whole", *BOTH).code == 0
    expected = read(tmp_path / "whole")
    train, calls = training.train, []

    def train_a_few(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(training, "train", train_a_few)
    assert call(tmp_path / "parts", *BOTH).code == 130
    kept = read(tmp_path / "parts")
    assert 0 < len(kept) < len(expected)
    monkeypatch.setattr(training, "train", train)
    result = call(tmp_path / "parts", *BOTH)
    assert result.code == 0
    assert "6 runs, 2 of them in " in result.out
    assert without_times(read(tmp_path / "parts")) == without_times(expected)


@pytest.mark.usefixtures("invented")
def test_more_seeds_and_methods_only_add_runs(tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert call(out, "--methods", "uncorrected").code == 0
    before = read(out)
    assert call(out, *BOTH, "--seeds", "3").code == 0
    after = read(out)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1 + 3 * 3 - 2 * 2

    def fail(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", fail)
    result = call(out, "--methods", "uncorrected")
    assert result.code == 0
    assert "4 runs, 4 of them" in result.out


@pytest.mark.usefixtures("invented")
def test_the_folder_of_a_file_is_kept_nowhere(tmp_path):
    folder = tmp_path / "secret-place"
    folder.mkdir()
    content = ("To be, or not to be, that is the question.\n" * 50).encode()
    (folder / "play.txt").write_bytes(content)
    out = tmp_path / "out"
    arguments = [*TINY, "--methods", "uncorrected", "--out", out]
    found = cli.call("--data-file", folder / "play.txt", *arguments, program=shakespeare.main)
    assert found.code == 0, found.err
    for path in out.glob("*.json*"):
        assert "secret-place" not in path.read_text()
    refused = call(out)
    assert refused.code == 2
    assert 'have text "play.txt", not "generated": choose another --out' in refused.err


INTERRUPTED = """
import os, signal, sys, threading, time
sys.path.append(sys.argv[1])
import shakespeare
from dcasgd_jax.commands import command_line
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
# Python drops what is raised where it collects garbage: then one interrupts again.
for seconds in (float(sys.argv[2]), float(sys.argv[2]) + 60):
    again = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()
command_line.leave(shakespeare.main(["--generated", "--out", sys.argv[3]]))
"""


@pytest.mark.parametrize("seconds", [9.0, 13.0])
def test_an_interrupt_exits_and_does_not_crash(tmp_path, seconds):
    """The device may be at work then; a thread of it left behind ended in a segmentation fault."""
    command = [sys.executable, "-c", INTERRUPTED, str(STUDIES), str(seconds), str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 130, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1] == "shakespeare.py: error: interrupted"


@pytest.fixture
def no_training(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("work began")

    monkeypatch.setattr(training, "train", fail)


BAD = {
    "no text": ([], "give a plain text with --data-file FILE"),
    "two texts": (["--generated", "--data-file", "x"], "--data-file or --generated, not both"),
    "missing file": (["--data-file", "missing.txt"], "missing.txt: cannot be read"),
    "folder": (["--data-file", "."], "cannot be read (Is a directory)"),
    "empty file": (["--data-file", "empty.txt"], "empty.txt: is empty"),
    "no UTF-8": (["--data-file", "bytes.txt"], "byte 1 is not UTF-8"),
    "many characters": (["--data-file", "many.txt"], "300 different characters, more than 256"),
    "short": (["--data-file", "short.txt"], "30 characters: its last tenth must be longer"),
    "long context": (["--generated", "--context", "30000"], "200000 characters"),
    "heads": (["--generated", "--heads", "3"], "--heads 3: must divide --width 32"),
    "steps": (["--generated", "--updates", "100"], "--updates 100: must be a multiple of 16"),
    "slow": (["--generated", "--updates", "16", "--delays", "9"], "--delays 9: more than half"),
    "deep": (
        ["--generated", "--updates", "16", "--blocks", "8"],
        "--delays stages: more than half",
    ),
    "delay": (["--generated", "--delays", "fast"], "'fast' is no integer >= 1, 2bw or stages"),
    "no delay": (["--generated", "--delays", "0"], "'0' is no integer >= 1"),
    "method": (["--generated", "--methods", "magic"], "'magic'"),
    "optimizer": (["--generated", "--optimizers", "sgd"], "'sgd'"),
    "seeds": (
        ["--generated", "--seeds", "101"],
        "--seeds 101: seeds from 100 on are for tuning, use at most 100",
    ),
    "no seed": (["--generated", "--seeds", "0"], "--seeds"),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_any_work(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("empty.txt", b""),
        ("bytes.txt", b"a\xff"),
        ("many.txt", "".join(map(chr, range(0x4E00, 0x4E00 + 300))).encode()),
        ("short.txt", b"abc" * 10),
    ):
        (tmp_path / name).write_bytes(content)
    arguments, message = BAD[case]
    result = cli.call(*arguments, "--out", "out", program=shakespeare.main)
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert message in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    "content", ["no JSON\n", "[]\n", "{}\n", '{"run": {"optimizer": "adam"}}\n']
)
def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path, content):
    (tmp_path / ledger.RESULTS).write_text(content)
    result = cli.call("--generated", "--out", tmp_path, program=shakespeare.main)
    assert result.code == 2
    assert "results.jsonl, line 1, is no result of shakespeare.py" in result.err
    assert result.err.count("\n") == 1
    assert (tmp_path / ledger.RESULTS).read_text() == content


@pytest.mark.usefixtures("invented")
def test_runs_of_another_setting_are_not_mixed(tmp_path):
    assert call(tmp_path, "--methods", "uncorrected").code == 0
    before = (tmp_path / ledger.RESULTS).read_text()
    result = call(tmp_path, "--methods", "uncorrected", "--batch-size", "4")
    assert result.code == 2
    assert "have batch_size 2, not 4: choose another --out" in result.err
    assert (tmp_path / ledger.RESULTS).read_text() == before
