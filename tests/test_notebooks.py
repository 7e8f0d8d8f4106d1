"""The notebooks: executed top to bottom in a fresh kernel, small, and committed with outputs."""

import ast
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000
# What the first cell installs, if not the usual.
EXTRAS = {"04_cifar10": "reproduce", "07_ray": "commands,ray"}
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
    assert {path.stem[:2] for path in NOTEBOOKS} >= {"01", "02", "03", "04", "05", "06", "07"}


@each_notebook
def test_runs_top_to_bottom(path, tmp_path):
    copy = shutil.copy(path, tmp_path)
    # The kernel must see this installation and nothing of the settings of the test run.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MPLBACKEND", "XLA_FLAGS", "PYTHONWARNINGS", "DATA_DIR")
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


@each_notebook
@pytest.mark.parametrize("place", ["installed", "checkout", "elsewhere"])
def test_first_cell_installs_what_is_missing(path, place, tmp_path, monkeypatch):
    if place == "checkout":
        (tmp_path / "pyproject.toml").touch()
    directory = tmp_path / "notebooks"
    directory.mkdir()
    installed = []
    monkeypatch.chdir(directory)
    monkeypatch.setattr(subprocess, "check_call", installed.append)
    if place != "installed":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    first = nbformat.read(path, as_version=4).cells[0]
    exec(compile(first.source, path.name, "exec"), {})
    package = {"checkout": [str(tmp_path)], "elsewhere": ["dcasgd-jax"], "installed": []}[place]
    extras = EXTRAS.get(path.stem, "commands,flax")
    assert [command[-1] for command in installed] == [f"{p}[{extras}]" for p in package]
