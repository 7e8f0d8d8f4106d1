"""`dcasgd-jax reproduce imagenet`, end to end with a tiny network on generated images."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("pyarrow")

from dcasgd_jax import sim
from dcasgd_jax.commands import methods, terminal
from dcasgd_jax.commands.images import imagenet as readers
from dcasgd_jax.commands.reproduce import (
    experiment,
    imagenet,
    paper,
    results,
    settings,
    training,
)

from .. import cli
from ..images import writers
from .test_reproduce import OF_A_PROCESS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return writers.write_folders(tmp_path_factory.mktemp("imagenet"), per_class=6)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A folder with one run, its final parameters, and what the command said."""
    out = tmp_path_factory.mktemp("finished")
    with caught_params() as params:
        result = cli.call(*arguments(data, out))
    assert result.code == 0, result.err
    return out, params[-1], result.out


@contextlib.contextmanager
def caught_params():
    """The parameters that each simulation ends with."""
    found = []
    simulate = sim.simulate

    def catching(*args, **options):
        result = simulate(*args, **options)
        found.append(jax.device_get(result.params))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim, "simulate", catching)
        yield found


def arguments(data, out, *more):
    tiny = ["--model", "tiny", "--num-classes", "3", "--image-size", "16", "--batch-size", "2"]
    few = ["--epochs", "3", "--workers", "4", "--methods", "dcasgd-a", "--eval-batch-size", "4"]
    return ["reproduce", "imagenet", "--data-dir", data, "--out", out, *tiny, *few, *more]


def test_a_run_is_trained_evaluated_and_reported(finished):
    out, _, said = finished
    (line,) = results.read(out)
    assert line["run"]["lambda0"] == 2
    assert line["settings"]["experiment"] == "imagenet"
    assert line["settings"]["ms_decay"] == 0
    assert line["settings"]["image_size"] == 16
    assert line["settings"]["learning_rate_decay"]["after_epochs"] == [1, 2]
    assert line["pushes_per_epoch"] == 8  # 18 images: 2 batches of 2 for each of 4 workers
    assert line["curve"]["epoch"] == [3]  # 21 images evaluated for 18 are too many
    assert round(18 * line["final"]["test_error"], 3).is_integer()
    assert line["final"]["test_top5_error"] == 0  # of 3 classes
    assert 0.5 < line["final"]["train_loss"] < 5
    assert "of ImageNet" in said
    assert "Top-5" in said
    assert (out / experiment.PICTURE).exists()
    report = cli.call("reproduce", "imagenet", "--report-only", "--out", out)
    assert report.code == 0, report.err
    refused = cli.call("reproduce", "cifar10", "--report-only", "--out", out)
    assert "holds runs of imagenet" in refused.err


def test_an_interrupted_run_is_resumed(finished, data, tmp_path, monkeypatch):
    """The parameters are those of an uninterrupted call, to the last bit."""

    @contextlib.contextmanager
    def interrupted(total):
        done = []

        def advance(name, count):
            done.append(count)
            if sum(done) >= 12:
                raise KeyboardInterrupt

        yield terminal.Progress(advance, lambda text: None)

    more = ["--checkpoint-every", "0.5"]
    with monkeypatch.context() as patch:
        patch.setattr(terminal, "progress_bar", interrupted)
        assert cli.call(*arguments(data, tmp_path, *more)).code == 130
    assert not results.read(tmp_path)
    (checkpoints,) = (tmp_path / experiment.CHECKPOINTS).glob("dcasgd-a*0")
    assert max(int(path.stem) for path in checkpoints.glob("*.npz")) >= 4
    with caught_params() as params:
        resumed = cli.call(*arguments(data, tmp_path, *more))
    assert resumed.code == 0, resumed.err
    jax.tree.map(np.testing.assert_array_equal, params[-1], finished[1])
    of_any_process = lambda folder: [
        {name: value for name, value in line.items() if name not in OF_A_PROCESS}
        for line in results.read(folder)
    ]
    assert of_any_process(tmp_path) == of_any_process(finished[0])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--image-size", "32"], "image_size 16, not 32"),
        (["--subset", "16"], "train_images 18, not 16"),
        (["--epochs", "6"], "epochs 3, not 6"),
    ],
)
def test_other_settings_are_refused(finished, data, monkeypatch, more, words):
    monkeypatch.setattr(training, "train", lambda *args: pytest.fail("training began"))
    refused = cli.call(*arguments(data, finished[0], *more))
    assert refused.code == 2
    assert words in refused.err


def test_out_of_device_memory_says_what_needs_less(data, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 12 GiB.\nMore text.")

    monkeypatch.setattr(sim, "simulate", fail)
    failed = cli.call(*arguments(data, tmp_path))
    assert failed.code == 2
    for option in ("--batch-size", "--image-size", "--workers", "--eval-batch-size", "12 GiB"):
        assert option in failed.err


def test_without_data_the_files_are_named(tmp_path):
    refused = cli.call("reproduce", "imagenet", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "train/<class>/*.JPEG" in refused.err


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_image_is_named(split, tmp_path):
    """Also if the compiled program waits for it."""
    folder = writers.write_folders(tmp_path / "data", per_class=6)  # compiled as for `data`
    broken = folder / split / writers.CLASSES[0] / f"{writers.CLASSES[0]}_0.JPEG"
    broken.write_bytes(b"no image")
    failed = cli.call(*arguments(folder, tmp_path / "out"))
    assert failed.code == 2
    assert str(broken) in failed.err
    assert re.search("replace the file", failed.err)


def test_streamed_evaluation_is_that_of_all_images(data):
    """In batches of 4, the last of which is filled up."""
    found = readers.open_imagenet(data, num_classes=3)
    split = imagenet.Split(found.validation, np.arange(18)[::-1])
    setting = settings.Setting(
        model="tiny", experiment="imagenet", image_size=16, num_classes=3, epochs=3
    )
    whole, streamed = (
        imagenet.problem_maker(setting, imagenet.Data(split, split), size)(0) for size in (18, 4)
    )
    evaluate = lambda problem: jax.jit(problem.eval_fn)(problem.params, problem.model_state)
    first = evaluate(whole)
    for _ in range(2):  # the second begins anew
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), first,
                     evaluate(streamed))  # fmt: skip


def test_a_subset_is_of_all_classes(data):
    job = type("Job", (), {})()
    job.setting = settings.Setting(experiment="imagenet", num_classes=3)
    job.data_dir, job.cache_dir = data, None
    split = imagenet.take(imagenet.load(job).train, 9)
    assert set(split.labels) == {0, 1, 2}
    assert len(set(split.rows)) == 9


def test_resnet50_has_the_shapes_of_imagenet():
    setting = settings.Setting(model="resnet50", experiment="imagenet", num_classes=1000)
    make = lambda: imagenet.make_model(setting, 0)(jnp.zeros((2, 224, 224, 3)))
    logits = jax.eval_shape(make)
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)


def test_the_protocol_of_the_paper():
    """The learning rate falls every 30 epochs of 16 workers with batches of 32; ms_decay is 0."""
    reported = paper.IMAGENET
    setting = settings.Setting(
        experiment="imagenet", epochs=reported.epochs, batch_size=reported.batch_size
    )
    run = settings.Run("dcasgd-a", 16, 0.1, 2.0, None, 0)
    per_epoch = settings.budget(
        setting, run, run.trained_by.protocol, reported.num_images
    ).pushes_per_epoch
    assert per_epoch == 16 * 2502
    method = setting.method_of(run)
    assert repr(method.curvature) == "adaptive(ms_decay=0.0, eps=1e-07)"
    tx = methods.make_tx(method, 90 * per_epoch, reported.decay_at, warm_up=0)
    grads, params = {"w": jnp.array([0.2])}, {"w": jnp.array([1.0])}
    state = methods.init_opt_state(tx, params, methods.Hyperparameters(0.1, 2.0))
    stale = {"w": jnp.array([0.5])}
    for epoch, rate in ((0, 0.1), (30, 0.01), (60, 0.001)):
        for count, factor in ((epoch * per_epoch, 1), (epoch * per_epoch - 1, 10)):
            if count < 0:
                continue
            at = jax.tree.map(
                lambda leaf, count=count: jnp.int32(count) if leaf.dtype == jnp.int32 else leaf,
                state,
            )
            updates, _ = tx.update(grads, at, params, stale_params=stale, worker=0, staleness=1)
            np.testing.assert_allclose(
                updates["w"], -rate * factor * (0.2 + 2 * 0.2 * 0.5), rtol=1e-4
            )
