"""Loggers: what they hear of a run, in which words, and each with the real package."""

import json
import math
import struct

import calls
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import dcasgd_jax as dc
from dcasgd_jax import sim

EVENTS = 90


class Heard:
    def __init__(self):
        self.lines = []

    def log(self, step, values):
        assert type(step) is int
        assert {type(value) for value in values.values()} == {float}
        self.lines.append((step, dict(values)))


def loss(params, batch):
    return jnp.mean((params["w"][None] - batch) ** 2)


def evaluate(params):
    return {"size": jnp.sum(params["w"] ** 2), "each": params["w"][:2]}


SCHEDULE = sim.make_schedule(sim.ExponentialTime(), 3, num_updates=EVENTS, seed=0)
BATCHES = np.random.default_rng(0).normal(1.0, 1.0, (EVENTS, 4, 3)).astype(np.float32)
TX = optax.inject_hyperparams(
    lambda learning_rate: optax.chain(dc.compensate_delay(0.5), optax.sgd(learning_rate))
)(learning_rate=0.05)


def simulate(schedule=SCHEDULE, batches=BATCHES, **options):
    heard = Heard()
    result = calls.simulate(
        loss, {"w": jnp.zeros(3)}, TX, schedule, batches,
        eval_fn=evaluate, metrics=["gap"], logger=heard, **options,
    )  # fmt: skip
    return heard.lines, result


def expected(result, every):
    """Of the trace, in NumPy."""
    trace, told, first = result.trace, {}, 0
    for end in [*range(every, len(trace.event), every), len(trace.event)]:
        window, last = slice(first, end), end - 1
        used = trace.applied[window]
        mean = lambda column: column[window][used].astype(np.float64).mean()  # noqa: B023
        told[last] = {
            **{name: mean(getattr(trace, name)) for name in ("loss", "gap", "staleness")},
            "samples": float(trace.samples[last]), "time": float(trace.time[last]),
        }  # fmt: skip
        first = end
    evaluations = result.evaluations
    for i, version in enumerate(evaluations.version):
        event = np.flatnonzero(trace.applied & (trace.version == version - 1))[0]
        values = told.setdefault(int(event), {})
        values["eval/size"] = float(evaluations.values["size"][i])
        for j in range(2):
            values[f"eval/each/{j}"] = float(evaluations.values["each"][i, j])
        values.setdefault("samples", float(evaluations.samples[i]))
        values.setdefault("time", float(evaluations.time[i]))
    step = lambda event: int(trace.version[event] + trace.applied[event])
    return [(step(event), values) for event, values in sorted(told.items())]


def check(lines, wanted):
    assert [step for step, _ in lines] == [step for step, _ in wanted]
    for (_, found), (_, values) in zip(lines, wanted, strict=True):
        assert found == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("every", [1, 20, 1000])
@pytest.mark.parametrize(
    "engine", [sim.ScanEngine(chunk_size=32), sim.HostEngine(chunk_size=7)], ids=["scan", "host"]
)
def test_means_over_windows_and_evaluations_whatever_the_chunks(engine, every):
    lines, result = simulate(engine=engine, log_every=every, eval_versions=[13, 40, EVENTS])
    check(lines, expected(result, every))


def test_lanes_tell_the_same():
    mesh = jax.make_mesh((2,), ("workers",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    engine = sim.LanesEngine(mesh)
    lines, result = simulate(engine=engine, log_every=20, eval_versions=[13, 40, EVENTS])
    check(lines, expected(result, 20))


def test_pushes_that_are_dropped_do_not_count_in_means():
    schedule = sim.make_schedule(
        sim.ParetoTime(), 3, num_updates=40, seed=0, protocol=sim.DropStale(1)
    )
    assert not schedule.applied.all()
    batches = np.resize(BATCHES, (len(schedule), 4, 3))
    lines, result = simulate(schedule, batches, log_every=10)
    check(lines, expected(result, 10))


def test_a_run_that_goes_on_from_a_checkpoint_tells_what_is_new(tmp_path):
    whole, _ = simulate(log_every=30)
    saved = sim.Checkpoint(tmp_path, every=30)
    first, _ = simulate(log_every=30, checkpoint=saved, stop=60)
    rest, _ = simulate(log_every=30, checkpoint=saved)
    check([*first, *rest], whole)


def test_members_of_a_sweep_are_told_apart():
    rates = [0.02, 0.05]
    alone = {rate: simulate_at(rate) for rate in rates}
    together, own = Heard(), [Heard(), Heard()]
    for logger in (together, sim.PerMember(own)):
        sweep(rates, logger)
    for engine in (sim.HostEngine(),):
        again = [Heard(), Heard()]
        sweep(rates, sim.PerMember(again), engine=engine)
        for heard, rate in zip(again, rates, strict=True):
            check(heard.lines, alone[rate])
    for member, rate in enumerate(rates):
        check(own[member].lines, alone[rate])
        of_member = [
            (step, {name.partition("/")[2]: value for name, value in values.items()})
            for step, values in together.lines
            if f"member{member}/samples" in values
        ]
        check(of_member, alone[rate])


def simulate_at(rate):
    heard = Heard()
    opt_state = TX.init({"w": jnp.zeros(3)})
    opt_state = opt_state._replace(hyperparams={"learning_rate": jnp.float32(rate)})
    calls.simulate(
        loss, {"w": jnp.zeros(3)}, TX, SCHEDULE, BATCHES,
        opt_state=opt_state, logger=heard, log_every=40, eval_fn=evaluate,
    )  # fmt: skip
    return heard.lines


def sweep(rates, logger, **options):
    calls.sweep(
        loss, {"w": jnp.zeros(3)}, TX, SCHEDULE, BATCHES,
        hyperparams={"learning_rate": rates}, logger=logger, log_every=40, eval_fn=evaluate,
        **options,
    )  # fmt: skip


def test_a_loss_that_is_not_finite_is_told():
    lines, result = simulate(batches=np.where(np.arange(EVENTS) == 50, np.nan, BATCHES.T).T)
    assert result.non_finite.event == 50
    assert math.isnan(lines[-1][1]["loss"])


def test_json_lines(tmp_path):
    path = tmp_path / "run.jsonl"
    logger = dc.loggers.JsonLines(path)
    logger.log(1, {"loss": 0.5, "gap": math.nan})
    logger.log(2, {"loss": math.inf})
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert told == [{"step": 1, "loss": 0.5, "gap": None}, {"step": 2, "loss": None}]
    dc.loggers.JsonLines(path).log(3, {})  # is added
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(FileNotFoundError):
        dc.loggers.JsonLines(tmp_path / "nowhere" / "run.jsonl")


def run(logger):
    return calls.simulate(
        loss, {"w": jnp.zeros(3)}, TX, SCHEDULE, BATCHES,
        eval_fn=evaluate, logger=logger, log_every=30,
    )  # fmt: skip


NAMES = {"loss", "staleness", "samples", "time", "eval/size", "eval/each/0", "eval/each/1"}


def test_tensorboard(tmp_path):
    from tensorboardX import SummaryWriter
    from tensorboardX.proto import event_pb2

    with SummaryWriter(str(tmp_path)) as writer:
        result = run(dc.loggers.tensorboard(writer))
    (path,) = tmp_path.glob("events.*")
    content, written = path.read_bytes(), []
    while content:  # a length, its checksum, an event, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        written.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    scalars = [(event.step, value) for event in written for value in event.summary.value]
    assert {value.tag for _, value in scalars} == NAMES
    losses = [(step, value.simple_value) for step, value in scalars if value.tag == "loss"]
    assert [step for step, _ in losses] == [30, 60, 90]
    assert losses[-1][1] == pytest.approx(result.losses[60:].mean())


def test_wandb_offline(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="dcasgd") as of_wandb:
        result = run(dc.loggers.wandb(of_wandb))
        assert of_wandb.step == EVENTS
        of_wandb.log({})  # a step is complete when the next one begins
        summary = {name: of_wandb.summary[name] for name in NAMES}
    assert summary["loss"] == pytest.approx(result.losses[60:].mean())
    assert summary["eval/size"] == pytest.approx(float(jnp.sum(result.params["w"] ** 2)))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_mlflow(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a database
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    try:
        with mlflow.start_run() as started:
            result = run(dc.loggers.mlflow(started.info.run_id))
        history = mlflow.MlflowClient().get_metric_history(started.info.run_id, "loss")
        found = mlflow.get_run(started.info.run_id).data.metrics
    finally:
        mlflow.set_tracking_uri(None)
    assert set(found) == NAMES
    assert [metric.step for metric in history] == [30, 60, 90]
    assert history[-1].value == pytest.approx(result.losses[60:].mean())


BAD = {
    "print": (lambda: run(print), r"Recording.logger must be something with log\(step, values\)"),
    "class": (lambda: run(Heard), "Recording.logger must be .* got the class Heard itself"),
    "of a sweep": (
        lambda: sweep([0.1, 0.2], sim.PerMember([Heard(), None, 3])), "Recording.logger must be",
    ),
    "writer": (lambda: dc.loggers.tensorboard("runs"), "writer must be a SummaryWriter"),
    "run": (lambda: dc.loggers.wandb("name"), r"run must be a run, as wandb.init\(...\)"),
    "id": (lambda: dc.loggers.mlflow(7), "run_id must be a run's id"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_loggers(name):
    call, words = BAD[name]
    with pytest.raises(TypeError, match=words):
        call()


def test_as_many_loggers_as_members():
    with pytest.raises(ValueError, match=r"one value per member.*'Recording.logger': 3"):
        sweep([0.1, 0.2], sim.PerMember([Heard(), Heard(), Heard()]))
    with pytest.raises(ValueError, match="log_every"):
        calls.simulate(loss, {"w": jnp.zeros(3)}, TX, SCHEDULE, BATCHES, log_every=0)
    with pytest.raises(ValueError, match="only a sweep has members"):
        run(sim.PerMember([Heard()]))
