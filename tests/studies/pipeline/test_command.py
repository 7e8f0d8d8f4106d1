"""The program `shakespeare.py` end to end on a generated text, resumed, and what it refuses."""

import functools
import json

import jax
import numpy as np
import pytest

pytest.importorskip("flax")

from commands import cli
from pipeline import methods, record, settings, text, training

from .. import programs

shakespeare = programs.load("shakespeare")

TINY = [
    *("--width", "4", "--blocks", "1", "--heads", "1", "--context", "4", "--batch-size", "2"),
    *("--steps", "16", "--seeds", "2", "--optimizers", "adam", "--delays", "2"),
]
BOTH = ["--methods", "uncorrected", "prediction"]


@pytest.fixture
def few(monkeypatch):
    """Few configurations and a short text."""
    monkeypatch.setattr(settings, "TUNING_SEEDS", (100,))
    for name, method in methods.METHODS.items():
        rates = method.rates[1::2] if method.strengths == (methods.NO_STRENGTH,) else (0.01,)
        fewer = type(method)(method.title, rates, method.strengths, method.predicts)
        monkeypatch.setitem(methods.METHODS, name, fewer)
    generate = functools.partial(text.generate, num_characters=2000)
    monkeypatch.setattr(text, "generate", generate)


@pytest.fixture
def invented(few, monkeypatch):
    """No training: curves that fall faster for larger seeds and smaller learning rates."""

    def train(workload, program, runs):
        falls = np.linspace(1, 0.5, settings.EVALUATIONS + 1)
        curves = [4 * falls ** (1 + run.seed / 1000 - run.learning_rate) for run in runs]
        return [training.Curves(curve[1:], curve) for curve in curves]

    monkeypatch.setattr(training, "make_program", lambda *arguments: None)
    monkeypatch.setattr(training, "train", train)


@pytest.fixture
def compile_fast():
    """Small programs that run a few times: most of the time would go into optimizing them."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def call(out, *options):
    return cli.call("--generated", *TINY, "--out", out, *options, program=shakespeare.main)


def read(out):
    return cli.strict_json(out / record.RESULTS)


@pytest.mark.usefixtures("few", "compile_fast")
def test_end_to_end(tmp_path):
    result = call(tmp_path)
    assert result.code == 0, result.err
    content = read(tmp_path)
    # 3 learning rates without delay; with it 3 + 2 + 2 + 3 configurations; then 2 seeds of 5 cells.
    assert len(content["runs"]) == 3 + 10 + 5 * 2
    assert f"{len(content['runs'])} runs to train, 0 in " in result.out
    assert content["data"] == text.generate().describe()
    assert content["data"]["name"] == "generated"
    assert content["settings"]["steps"] == 16
    assert content["tuning"]["seeds"] == [100]
    assert {"jax", "flax", "optax"} <= set(content["versions"])
    assert content["seconds"] > 0
    for line in content["runs"]:
        assert len(line["validation_loss"]) == len(line["train_loss"]) + 1 == 17
    fresh = [line for line in content["runs"] if line["seed"] != 100]
    starts = {line["seed"]: line["validation_loss"][0] for line in fresh}
    assert len(set(starts.values())) == 2
    for line in fresh:
        assert line["validation_loss"][0] == starts[line["seed"]]
    reference, *others = content["summaries"]
    assert reference["gap"] == {"mean": 0.0, "std": 0.0}
    assert [one["method"] for one in others] == list(methods.METHODS)
    for method in methods.METHODS.values():
        assert method.title in result.out
    assert (tmp_path / "shakespeare.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["shakespeare.json", "shakespeare.png"]


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
    kept = read(tmp_path / "parts")["runs"]
    assert 0 < len(kept) < len(expected["runs"])
    monkeypatch.setattr(training, "train", train)
    result = call(tmp_path / "parts", *BOTH)
    assert result.code == 0
    missing = len(expected["runs"]) - len(kept)
    assert f"{missing} runs to train, {len(kept)} in " in result.out
    content = read(tmp_path / "parts")
    for name in ("runs", "summaries", "settings", "data"):
        assert content[name] == expected[name]


@pytest.mark.usefixtures("invented")
def test_more_seeds_and_methods_only_add_runs(tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert call(out, "--methods", "uncorrected").code == 0
    before = read(out)["runs"]
    assert call(out, *BOTH, "--seeds", "3").code == 0
    after = read(out)["runs"]
    assert after[: len(before)] == before
    assert len(after) == len(before) + 3 + 3 * 3 - 2 * 2

    def fail(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", fail)
    result = call(out, "--methods", "uncorrected")
    assert result.code == 0
    assert "0 runs to train" in result.out


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
    assert read(out)["data"]["name"] == "play.txt"
    assert "secret-place" not in (out / record.RESULTS).read_text()
    refused = call(out)
    assert refused.code == 2
    assert 'have data name "play.txt", not "generated": choose another --out' in refused.err


@pytest.fixture
def no_training(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("work began")

    monkeypatch.setattr(training, "make_program", fail)


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
    "steps": (["--generated", "--steps", "100"], "--steps 100: must be a multiple of 16"),
    "slow": (["--generated", "--steps", "16", "--delays", "9"], "--delays 9: more than half"),
    "deep": (["--generated", "--steps", "16", "--blocks", "8"], "--delays stages: more than half"),
    "delay": (["--generated", "--delays", "fast"], "'fast' is no integer >= 1, 2bw or stages"),
    "no delay": (["--generated", "--delays", "0"], "'0' is no integer >= 1"),
    "method": (["--generated", "--methods", "magic"], "'magic'"),
    "optimizer": (["--generated", "--optimizers", "sgd"], "'sgd'"),
    "seeds": (["--generated", "--seeds", "101"], "--seeds 101: at most 100"),
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
    "content", ["no JSON", "[]", "{}", json.dumps({"runs": [{"optimizer": "adam"}]})]
)
def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path, content):
    (tmp_path / record.RESULTS).write_text(content)
    result = cli.call("--generated", "--out", tmp_path, program=shakespeare.main)
    assert result.code == 2
    assert "is no result of shakespeare.py" in result.err
    assert result.err.count("\n") == 1
    assert (tmp_path / record.RESULTS).read_text() == content


@pytest.mark.usefixtures("invented")
def test_runs_of_another_setting_are_not_mixed(tmp_path):
    assert call(tmp_path, "--methods", "uncorrected").code == 0
    before = (tmp_path / record.RESULTS).read_text()
    result = call(tmp_path, "--methods", "uncorrected", "--batch-size", "4")
    assert result.code == 2
    assert "have settings batch_size 2, not 4: choose another --out" in result.err
    assert (tmp_path / record.RESULTS).read_text() == before
