"""What the package promises: names, documented arguments, and no Ray for those who need none."""

import inspect
import re
import subprocess
import sys

import pytest

pytest.importorskip("ray")
from dcasgd_jax.runtime import ray


def names():
    found = vars(ray).items()
    return {n: v for n, v in found if not n.startswith("_") and not inspect.ismodule(v)}


def test_public_names_are_the_ones_promised():
    assert set(names()) == {"Run", "Status", "replay", "train"}


@pytest.mark.parametrize("function", [ray.train, ray.replay], ids=lambda f: f.__name__)
def test_public_functions_say_what_they_take_return_and_show(function):
    text = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:", ">>>"):
        assert section in text, section
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^  {argument}:", text, re.MULTILINE), argument


def test_only_who_asks_for_ray_gets_it():
    program = """
import sys
import dcasgd_jax, dcasgd_jax.commands.command_line
assert "ray" not in sys.modules
from dcasgd_jax.runtime import server  # what a server does needs no Ray
assert "ray" not in sys.modules
sys.modules["ray"] = None
try:
    import dcasgd_jax.runtime.ray
except ModuleNotFoundError as error:
    assert 'pip install "dcasgd-jax[ray]"' in str(error), error
else:
    raise AssertionError("imported without Ray")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
