"""Schedules: hand-written tables, protocols, slots, validation, files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcasgd_jax import archives, sim
from dcasgd_jax.runtime import history
from dcasgd_jax.schedules import events
from dcasgd_jax.schedules.slots import assign_slots

FIELDS = (
    "worker", "read_version", "version", "time", "applied", "batch", "corrupt", "read_time",
    "update_time",
)  # fmt: skip

# Event 1 repeats event 0, event 2 is dropped, event 4 arrives as NaN.
EVERYTHING = sim.Schedule(
    worker=[0, 0, 1, 0, 1],
    read_version=[0, 0, 0, 1, 2],
    version=[0, 1, 2, 2, 2],
    time=[1.0, 1.0, 2.0, 3.0, 4.0],
    num_workers=3,
    applied=[True, True, False, True, True],
    batch=[0, 0, 2, 3, 4],
    corrupt=[False, False, False, False, True],
    read_time=[0.0, 0.0, 0.5, 1.0, 2.0],
    update_time=[1.0, 1.5, 5.0, 5.0, 5.0],
)


def recorded(columns):
    return sim.RecordedTime(np.array(columns, float).T)


def test_asynchronous_table():
    # worker 0 pushes at 1, 2, 3, ...; worker 1 at 2.5, 5; worker 2 at 4, 8.
    schedule = sim.make_schedule(recorded([[1] * 9, [2.5] * 9, [4] * 9]), 3, 9, seed=0)
    assert schedule.time.tolist() == [1, 2, 2.5, 3, 4, 4, 5, 5, 6]
    assert schedule.worker.tolist() == [0, 0, 1, 0, 0, 2, 0, 1, 0]
    assert schedule.version.tolist() == list(range(9))
    assert schedule.read_version.tolist() == [0, 1, 0, 2, 4, 0, 5, 3, 7]
    assert schedule.staleness.tolist() == [0, 0, 2, 1, 0, 5, 1, 4, 1]
    assert schedule.updates.all()
    assert schedule.num_updates == 9


def test_synchronous_table():
    schedule = sim.make_schedule(
        recorded([[1, 5], [2, 1], [3, 2]]), 3, 2, seed=0, protocol=sim.Synchronous()
    )
    assert schedule.worker.tolist() == [0, 1, 2, 1, 2, 0]
    assert schedule.time.tolist() == [1, 2, 3, 4, 5, 8]
    assert schedule.version.tolist() == [0, 0, 0, 1, 1, 1]
    assert schedule.read_version.tolist() == [0, 0, 0, 1, 1, 1]
    assert schedule.updates.tolist() == [False, False, True] * 2
    assert schedule.num_slots == 1


def test_sequential_table():
    schedule = sim.make_schedule(
        recorded([[1, 2, 3], [9, 9, 9]]), 2, 3, seed=0, protocol=sim.Sequential()
    )
    assert schedule.worker.tolist() == [0, 0, 0]
    assert schedule.staleness.tolist() == [0, 0, 0]
    assert schedule.time.tolist() == [1, 3, 6]
    assert schedule.num_workers == 2


def test_round_robin_has_a_staleness_of_one_less_than_the_workers():
    schedule = sim.make_schedule(sim.RoundRobin(), 5, 40, seed=0)
    assert schedule.worker.tolist() == list(range(5)) * 8
    assert schedule.staleness.tolist() == [0, 1, 2, 3] + [4] * 36
    assert schedule.num_slots == 5


def test_protocols_meet_the_same_compute_times():
    law = sim.GammaTime(10, 1.0)
    asynchronous = sim.make_schedule(law, 4, 400, seed=7)
    synchronous = sim.make_schedule(law, 4, 100, seed=7, protocol=sim.Synchronous())
    for worker in range(4):
        arrivals = asynchronous.time[asynchronous.worker == worker]
        compute = np.diff(arrivals, prepend=0.0)[:50]
        rounds = synchronous.time.reshape(100, 4)
        start = np.concatenate([[0], rounds[:-1].max(axis=1)])
        mine = synchronous.time[synchronous.worker == worker] - start
        np.testing.assert_allclose(mine[: len(compute)], compute, rtol=1e-9)


def test_the_same_arguments_give_the_same_schedule_and_another_seed_another():
    first, again, other = (
        sim.make_schedule(sim.ExponentialTime(), 4, 300, seed=s) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.worker, again.worker)
    np.testing.assert_array_equal(first.time, again.time)
    assert (first.worker != other.worker).any()


def test_a_longer_schedule_begins_with_the_shorter_one():
    short, long = (sim.make_schedule(sim.ExponentialTime(), 6, n, seed=4) for n in (100, 5000))
    np.testing.assert_array_equal(short.worker, long.worker[:100])
    np.testing.assert_array_equal(short.read_version, long.read_version[:100])


def test_very_unequal_workers():
    schedule = sim.make_schedule(sim.ConstantTime([0.001, 1000.0]), 2, 3000, seed=0)
    assert (schedule.worker == 0).all()
    assert schedule.num_slots == 1  # nobody but worker 0 reads anything within the run


def test_a_million_events_keep_one_version_per_worker():
    schedule = sim.make_schedule(sim.GammaTime(), 64, 1_000_000, seed=0)
    assert schedule.num_slots == 64
    assert schedule.staleness[1000:].mean() == pytest.approx(63, rel=1e-3)


@st.composite
def hand_built(draw):
    """Any possible schedule: pushes averaged or not, workers reading whenever they like."""
    num_workers = draw(st.integers(1, 5))
    num_events = draw(st.integers(1, 40))
    worker, read, version = [], [], []
    last_read = [0] * num_workers
    current = 0
    for _ in range(num_events):
        m = draw(st.integers(0, num_workers - 1))
        last_read[m] = draw(st.integers(last_read[m], current))
        worker.append(m)
        read.append(last_read[m])
        version.append(current)
        current += draw(st.booleans())
    return sim.Schedule(worker, read, version, num_workers=num_workers)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(hand_built())
def test_slots_hold_every_version_until_its_last_reader(schedule):
    """Replays the slots: what is read is the version the schedule says, in the fewest slots."""
    slots = schedule.slots
    content = {}
    alive_at_once = 0
    for event in range(len(schedule)):
        content[slots.current[event]] = schedule.version[event]
        assert content[slots.read[event]] == schedule.read_version[event]
        later = set(schedule.read_version[event:].tolist()) & set(
            range(schedule.version[event] + 1)
        )
        alive_at_once = max(alive_at_once, len(later | {int(schedule.version[event])}))
    assert slots.num_slots == alive_at_once == len(set(slots.current.tolist()))


def test_asynchronous_runs_need_no_more_slots_than_workers():
    for law in (sim.ExponentialTime(), sim.GammaTime(), sim.ParetoTime(1.5)):
        for num_workers in (1, 2, 7):
            schedule = sim.make_schedule(law, num_workers, 300, seed=0)
            assert schedule.num_slots <= num_workers


def test_slots_of_a_long_lived_version():
    slots = assign_slots(np.array([0, 1, 2, 0, 4]), np.arange(5))
    assert slots.read[0] == slots.read[3]
    assert slots.num_slots == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(worker=[0, 1], read_version=[0, 2]), "event 1 it reads version 2, but the server"),
        (dict(worker=[0, 0], read_version=[0, -1]), "event 1 it reads version -1"),
        (dict(worker=[0, 3], read_version=[0, 0], num_workers=2), "event 1 worker 3 is not in"),
        (dict(worker=[0, -1], read_version=[0, 0]), "event 1 worker -1 is not in"),
        (
            dict(worker=[0, 0, 0], read_version=[0, 1, 0]),
            "event 2 worker 0 reads version 0, older than one it has read",
        ),
        (dict(worker=[0] * 3, read_version=[0] * 3, version=[0, 1, 0]), "event 2 the server is at"),
        (dict(worker=[0] * 3, read_version=[0] * 3, version=[0, 2, 3]), "event 1 the server is at"),
        (dict(worker=[0], read_version=[0], version=[1]), "event 0 the server is at version 1"),
        (
            dict(worker=[0] * 3, read_version=[0, 1, 2], time=[1.0, 2.0, 1.5]),
            r"event 2 its time is 1.5 s, after 2.0 s",
        ),
        (dict(worker=[0], read_version=[0], time=[np.nan]), "event 0 its time is nan"),
        (dict(worker=[0], read_version=[0], time=[-1.0]), "event 0 its time is -1"),
        (dict(worker=[0, 0], read_version=[0]), "differ in length"),
        (dict(worker=[], read_version=[]), "has no events"),
        (dict(worker=[0.5], read_version=[0]), "worker must hold 32-bit integers"),
        (dict(worker=[[0]], read_version=[0]), "worker must be one-dimensional"),
        (dict(worker=[0], read_version=[0], num_workers=0), "num_workers must be an integer >= 1"),
        (
            dict(worker=[0] * 2, read_version=[0] * 2, version=[0, 1], applied=[False, True]),
            r"event 1 the server goes up by one after a push that it dropped \(applied is False at "
            "event 0",
        ),
        (dict(worker=[0, 0], read_version=[0, 0], applied=[True]), "differ in length"),
        (dict(worker=[0, 0], read_version=[0, 0], batch=[0]), "differ in length"),
        (dict(worker=[0, 0], read_version=[0, 0], corrupt=[True]), "differ in length"),
        (dict(worker=[0, 0], read_version=[0, 0], read_time=[0.0]), "differ in length"),
        (dict(worker=[0, 0], read_version=[0, 0], applied=[0, 2]), "applied must hold booleans"),
        (dict(worker=[0], read_version=[0], batch=[0.5]), "batch must hold 32-bit integers"),
        (dict(worker=[0, 0], read_version=[0, 0], batch=[1, 1]), "event 0 batch is 1, but must be"),
        (dict(worker=[0, 0], read_version=[0, 0], batch=[-1, 1]), "event 0 batch is -1, but must"),
        (
            dict(worker=[0] * 3, read_version=[0] * 3, batch=[0, 0, 1]),
            "event 2 it repeats event 1, which is a repetition itself",
        ),
        (
            dict(worker=[0, 1], read_version=[0, 0], batch=[0, 0]),
            "event 1 it repeats event 0, but worker is 1 here and 0 there",
        ),
        (
            dict(worker=[0, 0], read_version=[0, 1], batch=[0, 0]),
            "event 1 it repeats event 0, but read_version is 1 here and 0 there",
        ),
        (
            dict(worker=[0, 0], read_version=[0, 1], read_time=[0.0, 2.5]),
            r"event 1 its read_time is 2.5 s, but must be in \[0, 2.0\] s",
        ),
        (dict(worker=[0], read_version=[0], read_time=[-0.5]), "event 0 its read_time is -0.5 s"),
        (dict(worker=[0], read_version=[0], read_time=[np.nan]), "event 0 its read_time is nan s"),
    ],
)
def test_impossible_schedules_name_the_first_impossible_event(fields, message):
    with pytest.raises(ValueError, match=message):
        sim.Schedule(**fields)


def test_of_two_faults_the_first_event_is_named():
    with pytest.raises(ValueError, match="event 1 it reads version 9"):
        sim.Schedule(worker=[0, 0, 7], read_version=[0, 9, 0], num_workers=1)


def test_the_defaults_of_the_optional_fields():
    schedule = sim.Schedule([0, 1, 0, 1], [0, 0, 1, 2], time=[1.0, 2.0, 2.5, 4.0])
    assert schedule.applied.tolist() == [True] * 4
    assert schedule.batch.tolist() == [0, 1, 2, 3]
    assert schedule.corrupt.tolist() == [False] * 4
    assert schedule.read_time.tolist() == [0, 0, 1.0, 2.0]


def test_an_update_is_made_at_the_last_push_of_its_version_or_later():
    pushes = dict(worker=[0, 1, 0], read_version=[0, 0, 1], version=[0, 0, 1], time=[1.0, 2.0, 4.0])
    assert sim.Schedule(**pushes).update_time.tolist() == [2, 2, 4]
    assert sim.Schedule(**pushes, update_time=[3, 3, 4]).update_time.tolist() == [3, 3, 4]
    for bad, message in (
        ([1.5, 1.5, 4], "event 1 its update_time is 1.5 s, before its time, 2.0 s"),
        ([2, 3, 4], "event 1 its update_time is 3.0 s, after one of 2.0 s for the same version"),
        ([9, 9, 4], "event 2 its update_time is 4.0 s, after one of 9.0 s for an earlier version"),
        ([2, 2, np.inf], "event 2 its update_time is inf s"),
    ):
        with pytest.raises(ValueError, match=message):
            sim.Schedule(**pushes, update_time=bad)


def test_a_bad_time_is_named_and_not_what_follows_from_it():
    pushes = dict(worker=[0, 1, 0], read_version=[0, 0, 0], version=[0, 0, 0])
    for time in ([1.0, 2.0, np.inf], [1.0, np.nan, 3.0], [2.0, 3.0, 1.0]):
        with pytest.raises(ValueError, match=r"event [12] its time is"):
            sim.Schedule(**pushes, time=time)


def test_a_repeated_push_was_read_when_the_first_was():
    schedule = sim.Schedule([0, 1, 0, 1, 0], [0, 0, 1, 0, 3], batch=[0, 1, 2, 1, 4])
    assert schedule.read_time.tolist() == [0, 0, 1, 0, 3]


def test_a_dropped_push_makes_no_update():
    schedule = sim.Schedule([0, 1, 0], [0, 0, 1], applied=[True, False, True])
    assert schedule.version.tolist() == [0, 1, 1]
    assert schedule.updates.tolist() == [True, False, True]
    assert schedule.num_pushes.tolist() == [1, 1, 1]
    assert schedule.num_updates == 2


def test_a_dropped_last_push_makes_no_last_update():
    schedule = sim.Schedule([0, 1], [0, 0], version=[0, 1], applied=[True, False])
    assert schedule.updates.tolist() == [True, False]
    assert schedule.num_updates == 1


def test_an_update_averages_the_applied_pushes_of_its_version():
    assert EVERYTHING.updates.tolist() == [True, True, False, False, True]
    assert EVERYTHING.num_pushes.tolist() == [1, 1, 2, 2, 2]
    assert EVERYTHING.num_pushes.dtype == np.int32
    assert EVERYTHING.num_updates == 3


def test_only_a_repeated_delivery_may_carry_an_old_read():
    fields = dict(worker=[0, 0, 0], read_version=[0, 1, 0])
    assert sim.Schedule(**fields, batch=[0, 1, 0]).staleness.tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match="event 2 worker 0 reads version 0, older than one"):
        sim.Schedule(**fields)


def test_a_schedule_is_summed_up_in_one_line():
    assert repr(EVERYTHING) == str(EVERYTHING)
    assert str(EVERYTHING) == (
        "Schedule: 5 events, 3 updates, 3 workers, staleness mean 0.5 max 1, 3 slots, "
        "3 waves of 1.67 events, applied pushes per worker 0 to 3"
    )
    nothing = sim.Schedule([0], [0], applied=[False])
    assert str(nothing) == (
        "Schedule: 1 event, 0 updates, 1 worker, staleness mean 0 max 0, 1 slot, 1 wave of 1 "
        "events, applied pushes per worker 0 to 0"
    )


def test_the_columns_are_these():
    assert tuple(events.COLUMNS) == FIELDS
    assert history.Event._fields == (*FIELDS, "number", "loss")


@pytest.mark.parametrize(
    "protocol",
    [
        sim.Asynchronous(overlap=True),
        sim.Synchronous(1),
        sim.StaleSynchronous(1),
        sim.Buffered(3),
        sim.DropStale(2),
    ],
    ids=repr,
)
@pytest.mark.parametrize("faulty", [False, True])
def test_the_first_updates_are_what_a_shorter_run_makes(protocol, faulty):
    faults = [sim.DuplicatedPush(0, 1), sim.NaNGradient(1, 0), sim.Crash(2, 3.0)] if faulty else []
    make = lambda num_updates: sim.make_schedule(
        sim.ExponentialTime(), 4, num_updates, seed=0, protocol=protocol, faults=faults
    )
    whole = make(40)
    for num_updates in (1, 7, 40):
        first, expected = whole.first(num_updates), make(num_updates)
        for name in (*FIELDS, "num_workers"):
            actual = getattr(first, name)
            np.testing.assert_array_equal(actual, getattr(expected, name), err_msg=name)
        assert first.num_updates == num_updates


def test_more_updates_than_there_are_cannot_be_the_first():
    schedule = sim.Schedule([0, 1, 0], [0, 0, 1])
    with pytest.raises(ValueError, match="holds 3 updates, but num_updates is 4; ask for fewer"):
        schedule.first(4)
    with pytest.raises(ValueError, match="num_updates must be an integer >= 1, got 0"):
        schedule.first(0)


def test_a_worker_that_never_pushes_is_fine():
    schedule = sim.Schedule([0, 2], [0, 0], num_workers=5)
    assert schedule.num_workers == 5
    schedule.validate()


def test_a_schedule_cannot_be_changed_by_accident():
    schedule = sim.make_schedule(sim.RoundRobin(), 2, 4, seed=0)
    with pytest.raises(ValueError, match="read-only"):
        schedule.worker[0] = 1


@pytest.mark.parametrize(
    "arguments",
    [
        dict(num_workers=0, num_updates=5, seed=0),
        dict(num_workers=2, num_updates=0, seed=0),
        dict(num_workers=2, num_updates=5, seed=-1),
        dict(num_workers=2.0, num_updates=5, seed=0),
        dict(num_workers=True, num_updates=5, seed=0),
    ],
)
def test_make_schedule_refuses_bad_numbers(arguments):
    with pytest.raises((TypeError, ValueError), match=r"must be an integer >= \d, got"):
        sim.make_schedule(sim.ExponentialTime(), **arguments)


def test_save_and_load(tmp_path):
    path = tmp_path / "race.npz"
    schedule = sim.make_schedule(sim.ParetoTime(), 3, 50, seed=0, protocol=sim.Synchronous())
    schedule.save(path)
    loaded = sim.Schedule.load(path)
    for field in (*FIELDS, "num_workers"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(schedule, field))
    assert [p.name for p in tmp_path.iterdir()] == ["race.npz"]


def test_every_field_survives_save_and_load(tmp_path):
    path = tmp_path / "race.npz"
    EVERYTHING.save(path)
    loaded = sim.Schedule.load(path)
    for field in (*FIELDS, "num_workers"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(EVERYTHING, field))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "race.npz"
    sim.Schedule([0], [0]).save(path)
    before = path.read_bytes()

    def broken(stream, **arrays):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(OSError, match="disk full"):
        sim.Schedule([0, 0], [0, 1]).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["race.npz"]


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_loading_something_else_is_a_clear_error(tmp_path, content):
    path = tmp_path / "other.npz"
    if content is None:
        np.savez(path, worker=[0])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.npz is not a saved schedule"):
        sim.Schedule.load(path)


def test_a_file_of_other_columns_says_which(tmp_path):
    path = tmp_path / "race.npz"
    EVERYTHING.save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez_compressed(path, **{n: a for n, a in arrays.items() if n not in ("batch", "time")})
    with pytest.raises(ValueError, match=r"race\.npz .*: it has no batch, time\. Make"):
        sim.Schedule.load(path)
    np.savez_compressed(path, **arrays, bpplied=[True] * 5)
    with pytest.raises(ValueError, match=r"race\.npz .*: it has bpplied"):
        sim.Schedule.load(path)


def test_a_file_of_before_there_were_update_times_loads(tmp_path):
    path = tmp_path / "race.npz"
    schedule = sim.make_schedule(sim.ParetoTime(), 3, 20, seed=0, protocol=sim.Synchronous())
    arrays = {name: getattr(schedule, name) for name in FIELDS if name != "update_time"}
    archives.save(path, {**arrays, "num_workers": np.asarray(3, np.int64)}, compressed=True)
    loaded = sim.Schedule.load(path)
    np.testing.assert_array_equal(loaded.update_time, schedule.update_time)


def test_a_file_of_what_cannot_have_happened_is_refused(tmp_path):
    path = tmp_path / "race.npz"
    arrays = {name: getattr(EVERYTHING, name) for name in FIELDS}
    arrays |= {"time": arrays["time"][::-1], "num_workers": np.asarray(3, np.int64)}
    archives.save(path, arrays, compressed=True)
    with pytest.raises(ValueError, match=r"race\.npz .*: Impossible schedule: at event 1"):
        sim.Schedule.load(path)


def assert_loads_the_same_or_is_refused(path):
    """Returns whether it was refused, with a message that names it."""
    try:
        loaded = sim.Schedule.load(path)
    except ValueError as error:
        return str(error).startswith(f"{path} is not a saved schedule, or it is damaged: ")
    for field in (*FIELDS, "num_workers"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(EVERYTHING, field))
    return False


@pytest.mark.filterwarnings("ignore")  # of zipfile and NumPy, before they give up
def test_a_damaged_file_is_refused_or_loads_the_same(tmp_path):
    path = tmp_path / "race.npz"
    EVERYTHING.save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in range(0, len(content), 2):
        changed = bytearray(content)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        refused += assert_loads_the_same_or_is_refused(path)
    assert refused > len(content) / 4
    for length in range(0, len(content), 17):
        path.write_bytes(content[:length])
        assert assert_loads_the_same_or_is_refused(path)
