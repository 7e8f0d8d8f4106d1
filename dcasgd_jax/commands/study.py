"""The engine of all comparisons: methods in places, tuned on seeds of their own, run on fresh ones.

A study is a list of tasks. What is finished is a line of a file, so an interrupted study goes on.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from dcasgd_jax.commands import errors, ledger, records, terminal, tuning

if TYPE_CHECKING:
    from rich.console import Console

TUNING_SEEDS = (100, 101, 102)
"""No run that is reported has them."""

Frame = tuning.Frame

Outcome = dict[str, Any]
Progress = Callable[[float], None]


class Member(NamedTuple):
    """A run to be trained."""

    numbers: Any  # a NamedTuple: what is tuned
    seed: int

    @property
    def row(self) -> dict[str, Any]:
        """What tells it from the other runs of its task, in JSON's types."""
        return {**self.numbers._asdict(), "seed": self.seed}


Train = Callable[[Sequence[Member], Progress], Iterable[Outcome]]


def of_events(progress: Progress, pushes_per_event: int = 1) -> Callable[[int], None]:
    """What the simulator calls with all events so far, for one that hears of pushes just done."""
    done = 0

    def advance(num_events: int) -> None:
        nonlocal done
        progress((num_events - done) * pushes_per_event)
        done = num_events

    return advance


@dataclasses.dataclass(frozen=True)
class Task:
    """One method in one place.

    Args:
      place: What tells it from the other tasks, in JSON's types.
      tried: Values of what is tuned, NamedTuples of one type; a single one is taken as it is.
      train: Trains members, and yields what came of each, in order and in JSON's types.
      pushes: Of one run, for the progress bar.
      tune: Trains where only the end is of interest; default: `train`.
      programs: Tasks that agree in this share compiled programs.
    """

    place: Mapping[str, Any]
    tried: Sequence[Any]
    train: Train
    pushes: int
    tune: Train | None = None
    programs: Any = None

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(str(value) for value in self.place.values() if value is not None)

    def key(self, member: Member) -> dict[str, Any]:
        """What tells a run from all others."""
        return {**self.place, **member.row}


@dataclasses.dataclass(frozen=True)
class Study:
    """What is to be run.

    Args:
      program: For messages.
      settings: What all results in a folder have in common, in JSON's types.
      tasks: In order.
      seeds: The fresh ones.
      loss_of: Of what came of a run: what tuning makes small; nan: not to be chosen.
      check: As `ledger.Ledger` takes it.
      tell: Makes the sentence to print of a run that has just ended; default: nothing is said.
      tuning_seeds: Those to tune on.
      seeds_first: Whether all tasks run one seed before the next.
    """

    program: str
    settings: Mapping[str, Any]
    tasks: Sequence[Task]
    seeds: Sequence[int]
    loss_of: Callable[[Outcome], float]
    check: Callable[[ledger.Line], None]
    tell: Callable[[ledger.Line], str] | None = None
    tuning_seeds: Sequence[int] = TUNING_SEEDS
    seeds_first: bool = False


class Results:
    """What a folder holds of a study.

    Args:
      study: The study.
      out: The folder.

    Raises:
      UsageError: If a line of the folder is damaged.
    """

    def __init__(self, study: Study, out: pathlib.Path):
        self._tasks, self._seeds = study.tasks, study.seeds
        self.ledger = ledger.Ledger(out, study.program, study.check)

    def tuning_of(self, task: Task) -> ledger.Line | None:
        """What tuning a task has found; None before."""
        return self.ledger.find(tuned=task.place)

    def chosen(self, task: Task) -> Any:
        """The numbers that a task runs with; None before they are tuned."""
        if len(task.tried) == 1:
            return task.tried[0]
        line = self.tuning_of(task)
        return line and type(task.tried[0])(**line["chosen"])

    def runs_of(self, task: Task) -> list[ledger.Line]:
        """Finished runs with the chosen numbers, by seed."""
        numbers = self.chosen(task)
        if numbers is None:
            return []
        found = [self.ledger.find(run=task.key(Member(numbers, seed))) for seed in self._seeds]
        return [line for line in found if line is not None]

    def missing(self, task: Task) -> list[int]:
        """Fresh seeds that are still to be run."""
        done = {line["run"]["seed"] for line in self.runs_of(task)}
        return [seed for seed in self._seeds if seed not in done]

    def runs(self) -> list[ledger.Line]:
        """Of all tasks of the study."""
        return [line for task in self._tasks for line in self.runs_of(task)]

    def tunings(self) -> list[ledger.Line]:
        """Of all tasks of the study that were tuned."""
        return [line for task in self._tasks if (line := self.tuning_of(task))]


def read_all(
    out: pathlib.Path, program: str, check: Callable[[ledger.Line], None]
) -> tuple[list[ledger.Line], list[ledger.Line]]:
    """All runs, and all tunings, of a folder, whatever the study.

    Raises:
      UsageError: If there is no run, or a line is damaged.
    """
    lines = ledger.Ledger(out, program, check).lines()
    runs = [line for line in lines if "run" in line]
    if not runs:
        raise errors.UsageError(f"{out / ledger.RESULTS} holds no finished run")
    return runs, [line for line in lines if "tuned" in line]


def frame(lines: Iterable[ledger.Line]) -> Frame:
    """A row for each run: what tells it from the others, then what came of it."""
    import pandas as pd  # only here, so that help texts need no extra

    return pd.DataFrame([flat(line) for line in lines])


def flat(line: ledger.Line) -> dict[str, Any]:
    """What tells a run from the others, and what came of it, side by side."""
    return {**line["run"], **{name: v for name, v in line.items() if name != "run"}}


def run(study: Study, out: pathlib.Path, console: "Console") -> Results:
    """Trains what is missing in the folder, and keeps it as it goes.

    Args:
      study: What to run.
      out: The folder; made if it is not there.
      console: Where to say what there is to do.

    Returns:
      What the folder then holds.

    Raises:
      UsageError: If the folder cannot be written, is damaged or of other settings; before any
        training.
    """
    records.prepare_folder(out, ledger.RESULTS, ledger.SETTINGS)
    results = Results(study, out)
    ledger.check_settings(out, study.program, study.settings)
    for task in study.tasks:
        _check_tuned_alike(study, task, results, out)
    counts = {id(task): len(results.missing(task)) for task in study.tasks}
    tunings = [task for task in study.tasks if results.chosen(task) is None]
    total = sum(counts[id(task)] * task.pushes for task in study.tasks)
    total += sum(_tuning_pushes(study, task) for task in tunings)
    there, needed = sum(counts.values()), len(study.tasks) * len(study.seeds)
    terminal.print_text(console, f"{needed} runs, {needed - there} of them in {out} already.",
                        wrap=False)  # fmt: skip
    if tunings:
        num_tried = sum(len(task.tried) for task in tunings) * len(study.tuning_seeds)
        terminal.print_text(console, f"{len(tunings)} methods to tune first, {num_tried} runs.")
    with terminal.progress_bar(total) as progress:
        compiled_for = None
        for task, seeds in in_order(study):
            if compiled_for not in (None, task.programs):
                # A process that keeps a thousand programs runs out of memory maps, and crashes.
                jax.clear_caches()
            compiled_for = task.programs
            if results.chosen(task) is None:
                tune(study, task, results, progress)
            results.ledger.refresh()  # another process may have finished it meanwhile
            seeds = [seed for seed in results.missing(task) if seed in seeds]
            for line in _run_fresh(task, seeds, results, progress):
                if study.tell is not None:
                    terminal.print_text(console, study.tell(line), wrap=False)
    return results


def in_order(study: Study) -> Iterator[tuple[Task, Sequence[int]]]:
    """Tasks, and the seeds to run them with, one after the other."""
    groups = [[seed] for seed in study.seeds] if study.seeds_first else [study.seeds]
    for seeds in groups:
        for task in study.tasks:
            yield task, seeds


def _tuning_pushes(study: Study, task: Task) -> int:
    return len(task.tried) * len(study.tuning_seeds) * task.pushes


def _to_tune(study: Study, task: Task) -> list[Member]:
    return [Member(numbers, seed) for numbers in task.tried for seed in study.tuning_seeds]


def _check_tuned_alike(study: Study, task: Task, results: Results, out: pathlib.Path) -> None:
    """What the folder has chosen must be a choice among what is asked for now."""
    line = None if len(task.tried) == 1 else results.tuning_of(task)
    if line is not None and "tried" in line:  # early studies did not keep it
        rows = [member.row for member in _to_tune(study, task)]
        tuning.check_alike(f"{task.name} was tuned in {out}", line["tried"], rows)


def tune(study: Study, task: Task, results: Results, progress: terminal.Progress) -> None:
    """Tries every configuration on every tuning seed, and keeps all of it with the choice."""
    import pandas as pd

    started = time.perf_counter()
    members = _to_tune(study, task)
    outcomes = list((task.tune or task.train)(members, progress.of(f"tune {task.name}")))
    rows = [
        {**member.row, **outcome, "loss": study.loss_of(outcome)}
        for member, outcome in zip(members, outcomes, strict=True)
    ]
    tried = pd.DataFrame(rows)
    chosen = tuning.choose(tried, task.tried)
    seconds = time.perf_counter() - started
    results.ledger.append(
        {
            "tuned": dict(task.place),
            "chosen": chosen._asdict(),
            "warnings": tuning.warnings(tried, task.tried, chosen),
            **tuning.rate_ranges(tried, chosen),
            "tried": {name: [row[name] for row in rows] for name in rows[0]},
            "date": records.today(),
            "seconds": round(seconds, 1),
        }
    )
    progress.say(f"{task.name}: tuned, {len(members)} runs, {seconds:.0f} s")


def _run_fresh(
    task: Task, seeds: Sequence[int], results: Results, progress: terminal.Progress
) -> Iterator[ledger.Line]:
    if not seeds:
        return
    started = time.perf_counter()
    members = [Member(results.chosen(task), seed) for seed in seeds]
    outcomes = task.train(members, progress.of(task.name))
    for member, outcome in zip(members, outcomes, strict=True):
        yield results.ledger.append({"run": task.key(member), "date": records.today(), **outcome})
    seconds = time.perf_counter() - started
    progress.say(f"{task.name}: {len(seeds)} run{'s' * (len(seeds) > 1)}, {seconds:.0f} s")
