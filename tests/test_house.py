"""The house: who may import whom, what is public, what every public thing must say."""

import ast
import contextlib
import dataclasses
import doctest
import importlib
import inspect
import pathlib
import re

import jax
import one_ray
import pytest

import dcasgd_jax as dc
from dcasgd_jax import diagnostics, digits, plots, rivals, sim

PACKAGE = pathlib.Path(dc.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
NAMES = [".".join(path.parts).removesuffix(".__init__") for path in MODULES]


def imports(name):
    """Every module that a module imports, at the top or inside functions."""
    path = PACKAGE.parent / (name.replace(".", "/") + ".py")
    if not path.exists():
        path = PACKAGE.parent / name.replace(".", "/") / "__init__.py"
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def of_ours(name, *allowed):
    """Imports of this package that are not on the list."""
    return {
        found
        for found in imports(name)
        if found.startswith("dcasgd_jax.")
        and not any(found == a or found.startswith(a + ".") for a in allowed)
    }


def below(*prefixes):
    return [name for name in NAMES if any(name == p or name.startswith(p + ".") for p in prefixes)]


TYPES = "dcasgd_jax.typing"
CHECKS = "dcasgd_jax.checks"
GROUND = (
    TYPES,
    CHECKS,
    *(
        f"dcasgd_jax.{name}"
        for name in (
            "archives",
            "extras",
            "field_docs",
            "files",
            "loggers",
            "matrices",
            "rows",
            "sums",
            "trees",
            "update_checks",
        )
    ),
)
FORMULA = "dcasgd_jax.compensation"
SAMPLES = "dcasgd_jax.samples"
CURVATURES = "dcasgd_jax.curvatures"
PRECONDITIONERS = "dcasgd_jax.preconditioners"
STRENGTHS = "dcasgd_jax.strengths"
TRANSFORMS = "dcasgd_jax.transforms"
RIVALS = "dcasgd_jax.rivals"
DIAGNOSTICS = "dcasgd_jax.diagnostics"
SCHEDULES = "dcasgd_jax.schedules"
SIM = "dcasgd_jax.sim"
RUNTIME = "dcasgd_jax.runtime"


def test_floors():
    assert not of_ours(TYPES)
    assert not of_ours(CHECKS)
    for name in GROUND:
        assert not of_ours(name, *GROUND), name
    assert not of_ours(FORMULA, *GROUND)
    assert not of_ours(SAMPLES, *GROUND, FORMULA)
    for name in below(CURVATURES):
        assert not of_ours(name, *GROUND, FORMULA, CURVATURES), name
    for name in below(STRENGTHS):
        assert not of_ours(name, *GROUND, STRENGTHS), name
    for name in below(PRECONDITIONERS):
        assert not of_ours(name, *GROUND, PRECONDITIONERS), name
    maths = (*GROUND, FORMULA, CURVATURES, STRENGTHS, PRECONDITIONERS)
    for name in below(TRANSFORMS):
        assert not of_ours(name, *maths, TRANSFORMS), name
    for name in below(RIVALS):
        assert not of_ours(name, *maths, TRANSFORMS, RIVALS), name
    assert not of_ours("dcasgd_jax.alias", *maths, TRANSFORMS)
    assert not of_ours("dcasgd_jax.compressions", *GROUND)
    for name in below(DIAGNOSTICS):
        assert not of_ours(name, *maths, SAMPLES, DIAGNOSTICS), name
    for name in below(SCHEDULES):
        allowed = (CHECKS, TYPES, "dcasgd_jax.archives", "dcasgd_jax.field_docs", SCHEDULES)
        assert not of_ours(name, *allowed), name
    for name in below(SIM):
        assert not of_ours(name, *GROUND, SAMPLES, TRANSFORMS, SCHEDULES, SIM), name
    for name in below(RUNTIME):
        assert not of_ours(name, *GROUND, TRANSFORMS, SCHEDULES, SIM, RUNTIME), name
    for name in NAMES:
        if name not in (*below("dcasgd_jax.commands"), "dcasgd_jax.__main__"):
            assert not {f for f in imports(name) if f.startswith("dcasgd_jax.commands")}, name


ON_THE_HOST = [
    CHECKS,
    *below(SCHEDULES),
    *(f"dcasgd_jax.{name}" for name in ("archives", "extras", "field_docs", "files")),
    *(f"{SIM}.shared_memory.{name}" for name in ("adversary", "generation", "operations", "reads")),
]


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_the_schedule_is_plain_numpy(name):
    assert not {found for found in imports(name) if re.match(r"(jax|optax|chex|flax)\b", found)}


@pytest.mark.parametrize("name", NAMES)
def test_imports_of_every_module(name):
    found = imports(name)
    assert not {f for f in found if "._src" in f}, "private modules of jax or optax"
    if not name.startswith("dcasgd_jax.integrations"):
        assert not {f for f in found if re.match(r"flax\b", f)}
    if not name.startswith("dcasgd_jax.runtime"):
        assert not {f for f in found if re.match(r"ray\b", f)}
    if not name.startswith(("dcasgd_jax.commands", "dcasgd_jax.plots", "dcasgd_jax.digits")):
        assert not {f for f in found if re.match(r"(sklearn|matplotlib|rich)\b", f)}
    assert name.rpartition(".")[2] != "utils"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_file_holds_one_idea(path):
    lines = (PACKAGE.parent / path).with_suffix(".py").read_text().splitlines()
    assert len(lines) <= 300


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_function_can_be_read(path):
    """Lines of code, without docstrings, comments and blank lines."""
    text = (PACKAGE.parent / path).with_suffix(".py").read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            first = node.body[0].end_lineno if documented else node.lineno
            lines = text.splitlines()[first : node.end_lineno]
            code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
            assert len(code) <= 60, f"{node.name}: {len(code)} lines"


def public(module):
    """What a module says is public: it has an `__all__`, and that is complete."""
    named = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in named.items() if not inspect.ismodule(value)}


PUBLIC = (
    *(dc, dc.curvatures, dc.preconditioners, dc.strengths, rivals, rivals.sends, sim),
    *(diagnostics, plots, digits),
)


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_what_is_public_is_what_all_lists(module):
    assert module.__all__ == sorted(set(module.__all__), key=module.__all__.index)
    there = set(public(module))  # asked for first: what is imported when it is used is then there
    given = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    if module.__file__.endswith(("__init__.py", "sends.py")) and module is not plots:
        assert given == there


@pytest.mark.parametrize(
    "cls",
    [v for m in PUBLIC for v in public(m).values() if hasattr(v, "_fields")],
    ids=lambda cls: cls.__name__,
)
def test_fields_say_what_they_are(cls):
    for field in cls._fields:
        assert not getattr(cls, field).__doc__.startswith("Alias for field"), field


def test_public_names_are_the_ones_promised():
    assert set(public(dc)) == {
        *("compensate_delay", "compensate_updates", "remember_pulls", "assume_delay", "dcasgd"),
        *("delay_gradients", "pipeline_delays", "record_pull", "compensation_metrics"),
        *("adaptive_strength", "compensated_gradient", "update_mean_square"),
        *("AssumeDelayState", "CompensateDelayState", "DelayGradientsState", "RememberPullsState"),
        *("CompensateUpdatesState", "CompensationMetrics", "CompensationSums"),
    }
    assert set(public(dc.curvatures)) == {
        *("squared_gradient", "adaptive", "absolute", "fisher", "hessian", "elementwise"),
        *("rotated", "rows", "Curvature", "AdaptiveState", "RotatedState"),
    }
    assert set(public(dc.preconditioners)) == {
        *("adam", "muon", "Preconditioner", "MatrixDivisor"),
        *("AdamDivisorState", "MuonDivisorState"),
    }
    assert set(public(dc.strengths)) == {
        *("ratio", "capped_share", "least_squares", "StrengthRule", "Situation", "Coordinates"),
        *("RatioState", "CappedShareState", "LeastSquaresState"),
    }
    assert set(public(rivals.sends)) == {
        *("velocity_prediction", "multi_step_nesterov", "step_prediction", "roll_forward"),
        *("dana_look_ahead", "momentum_compensation", "coordinate_compensation"),
    }
    assert set(public(sim)) == {
        *("Asynchronous", "Buffered", "DropStale", "Sequential", "StaleSynchronous"),
        *("Synchronous", "Quorum", "Grace", "Sampled", "Protocol", "ProtocolServer"),
        *("ConstantTime", "ExponentialTime", "GammaTime", "LognormalTime", "MarkovTime"),
        *("ParetoTime", "RecordedTime", "RoundRobin"),
        *("Crash", "DuplicatedPush", "LateJoin", "LostPush", "NaNGradient", "Restart", "SlowDown"),
        *("availability", "Links"),
        *("Schedule", "make_schedule", "Indexed", "ShardedEpochs", "FixedShards"),
        *("dirichlet_shards", "label_shards", "label_counts"),
        *("Problem", "Recording", "Server"),
        *("LocalSteps", "OneGradient", "StepsTime", "steps_by_speed"),
        *("HostEngine", "LanesEngine", "ScanEngine", "Checkpoint"),
        *("Evaluations", "NonFinite", "SimResult", "SimState", "Trace", "simulate"),
        *("PerMember", "SweepResult", "grid", "sweep"),
        *("MemoryTrace", "ReadVersions", "SharedMemoryResult", "simulate_shared_memory"),
        *("guard_epochs", "held_back_schedule", "random_memory_trace", "SvrgResult", "svrg"),
    }


def test_public_names_of_the_diagnostics():
    assert set(public(diagnostics)) == {
        *("CURVATURES", "DIRECTIONS", "Explanation", "explain"),
        *("OuterProductError", "OuterProductErrors", "outer_product_error"),
    }


@pytest.mark.parametrize(
    "function",
    [
        f
        for m in (dc, dc.curvatures, dc.preconditioners, dc.strengths, diagnostics, sim)
        for f in public(m).values()
        if inspect.isfunction(f)
    ],
    ids=lambda f: f.__name__,
)
def test_public_functions_say_what_they_take_return_and_show(function):
    text = inspect.getdoc(function)
    takes = ("Args:",) if inspect.signature(function).parameters else ()
    for section in (*takes, "Returns:", "Example:", ">>>"):
        assert section in text, section
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^  {argument}:", text, re.MULTILINE), argument


@pytest.mark.parametrize(
    "value",
    [
        c
        for c in public(sim).values()
        if c.__module__.startswith(SCHEDULES) and dataclasses.is_dataclass(c)
    ],
    ids=lambda value: value.__name__,
)
def test_values_that_make_schedules_say_what_their_fields_are(value):
    text = inspect.getdoc(value)
    assert len(text.splitlines()[0]) <= 100
    for field in dataclasses.fields(value):
        if not field.name.startswith("_"):
            assert re.search(rf"^  {field.name}:", text, re.MULTILINE), field.name


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("__main__")])
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_examples_in_the_readme():
    readme = pathlib.Path(__file__).parents[1] / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        alone = one_ray.at_a_time() if "runtime" in block else contextlib.nullcontext()
        with alone, jax.numpy_rank_promotion("allow"):  # as a reader's interpreter has it
            exec(compile(block, "README.md", "exec"), {})
