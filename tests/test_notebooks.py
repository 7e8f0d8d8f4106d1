"""The notebooks: executed top to bottom in a fresh kernel, small, and committed with outputs."""

import ast
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000
# What the second cell installs, if not the usual.
EXTRAS = {
    "02_optax_and_flax": "commands,flax",
    "04_cifar10": "reproduce",
    "07_ray": "commands,ray",
    "08_local_steps": "commands,flax",
}
# In a process of its own: what zmq and asyncio warn of is theirs, and no warning of ours is hidden.
EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert {path.stem[:2] for path in NOTEBOOKS} >= {"01", "02", "03", "04", "05", "06", "07", "08"}


@each_notebook
def test_runs_top_to_bottom(path, tmp_path):
    copy = shutil.copy(path, tmp_path)
    # The kernel must see this installation and nothing of the settings of the test run.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MPLBACKEND", "PYTHONWARNINGS", "DATA_DIR")
    }
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(path.parents[1])}
    environment |= {"HF_HUB_OFFLINE": "1"}  # generated images: no download, the same everywhere
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, copy],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-5000:]


@each_notebook
def test_is_small_and_has_its_outputs(path):
    assert path.stat().st_size < MAX_BYTES
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert not [output for output in outputs if output.get("name") == "stderr"]


@each_notebook
def test_ends_in_an_assert(path):
    assert isinstance(ast.parse(code_cells(path)[-1].source).body[-1], ast.Assert)


def install(path, monkeypatch, directory, *, anything_missing):
    """Runs the second cell in `directory`; returns what it would have pip install."""
    installed = []
    monkeypatch.chdir(directory)
    monkeypatch.setattr(subprocess, "check_call", installed.append)
    if anything_missing:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cell = nbformat.read(path, as_version=4).cells[1]
    exec(compile(cell.source, path.name, "exec"), {})
    return [command[-1] for command in installed]


@each_notebook
def test_begins_with_its_title_and_installs_nothing_that_is_there(path, tmp_path, monkeypatch):
    title, cell, *_ = nbformat.read(path, as_version=4).cells
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert cell.cell_type == "code"
    assert install(path, monkeypatch, tmp_path, anything_missing=False) == []


@each_notebook
def test_installs_what_is_missing_from_its_own_checkout(path, monkeypatch):
    checkout = path.parents[1]
    extras = EXTRAS.get(path.stem, "commands")
    installed = install(path, monkeypatch, path.parent, anything_missing=True)
    assert installed == [f"{checkout}[{extras}]"]


@each_notebook
@pytest.mark.parametrize("place", ["elsewhere", "another project"])
def test_never_installs_a_package_by_name(path, place, tmp_path, monkeypatch):
    """The name is not registered: from an index it would be somebody else's."""
    if place == "another project":
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    directory = tmp_path / "notebooks"
    directory.mkdir()
    with pytest.raises(ModuleNotFoundError, match=r"Not installed here: dcasgd_jax.*checkout"):
        install(path, monkeypatch, directory, anything_missing=True)


@each_notebook
def test_uses_what_is_public(path):
    found = re.findall(r"(?:from|import) +(dcasgd_jax[\w.]*)", path.read_text(encoding="utf-8"))
    public = ("dcasgd_jax", "dcasgd_jax.integrations", "dcasgd_jax.runtime")
    assert set(found) <= set(public)
