"""The studies stand outside: nothing in the package imports them, and they are built like it."""

import ast

import pytest

import dcasgd_jax

from .conftest import STUDIES

FILES = sorted(STUDIES.rglob("*.py"))
PACKAGE = STUDIES.parents[1] / "dcasgd_jax"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(STUDIES)))
def test_a_file_holds_one_idea(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))
    assert "._src" not in text


def test_nothing_in_the_package_knows_them():
    assert dcasgd_jax.__file__
    names = {path.stem for path in STUDIES.iterdir() if path.suffix == ".py" or path.is_dir()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not names & {name.split(".")[0] for name in found}, path
