"""The pages: every block of Python runs, in the order of its page, and prints what it says."""

import ast
import contextlib
import importlib.metadata
import importlib.util
import io
import re
import sys
import warnings

import jax
import one_ray
import pages
import pytest

from dcasgd_jax.commands import command_line

OWN = {"dcasgd_jax"}
# What the extra `test` installs: a block may import it without a mark.
INSTALLED = {"flax", "jax", "matplotlib", "numpy", "optax", "pandas", "ray", "sklearn"}

each_page = pytest.mark.parametrize(
    "path",
    [path for path in pages.PAGES if list(pages.blocks(path))],
    ids=lambda path: str(path.relative_to(pages.ROOT).with_suffix("")),
)


def imported(code):
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - OWN


def one_at_a_time(code):
    return one_ray.at_a_time() if "runtime import ray" in code else contextlib.nullcontext()


@each_page
def test_examples_of_a_page(path, tmp_path, monkeypatch):
    """One namespace for a page: what is imported or defined above may be used below."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    code = "\n".join(block.code for block in pages.blocks(path))
    with one_at_a_time(code), jax.numpy_rank_promotion("allow"):
        for block in pages.blocks(path):
            if not block.is_run or not all(map(importlib.util.find_spec, block.packages)):
                continue
            printed = io.StringIO()
            program = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                if block.packages:  # what other people's packages warn of is theirs
                    warnings.simplefilter("ignore")
                exec(program, namespace)
            if block.output is not None:
                same = pages.prints_the_same(printed.getvalue(), block.output)
                assert same, f"{path.name}:{block.line} printed\n{printed.getvalue()}"


@each_page
def test_what_a_block_needs_is_marked(path):
    for block in pages.blocks(path):
        assert imported(block.code) - INSTALLED == set(block.packages), f"line {block.line}"


@each_page
def test_a_block_fits_its_page(path):
    for block in pages.blocks(path):
        assert max(map(len, block.code.splitlines())) <= 88, f"line {block.line}"


def test_what_is_taken_for_installed_comes_with_the_extra_test():
    required = importlib.metadata.requires("dcasgd-jax")
    names = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in required}
    assert {"scikit_learn" if name == "sklearn" else name for name in INSTALLED} <= names


def test_commands_on_the_pages_have_the_options_that_are_used(capsys):
    lines = [
        line
        for path in [*pages.PAGES, pages.README]
        for block in pages.blocks(path, "bash")
        for line in block.code.replace("\\\n", " ").splitlines()
    ]
    commands = [line.partition("dcasgd-jax ")[2] for line in lines if "dcasgd-jax " in line]
    assert len(commands) > 5
    for command in commands:
        words = command.partition("  #")[0].split()
        named = [word for word in words[:2] if re.fullmatch(r"[a-z0-9]+", word)]
        with pytest.raises(SystemExit, match="0"):
            command_line.main([*named[: 2 if named[0] == "reproduce" else 1], "--help"])
        text = capsys.readouterr().out
        for option in re.findall(r"--[a-z][a-z0-9-]*", " ".join(words)):
            assert option in text, f"dcasgd-jax {command}"
