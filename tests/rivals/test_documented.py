"""What every transformation of `dcasgd_jax.rivals` must say of itself."""

import inspect
import re

import pytest

from dcasgd_jax import rivals

# Transformations of gradients; what a server sends is tested with the `send` hooks.
SENDING = ("dana", "prediction", "acceleration", "sending")
FUNCTIONS = [
    function
    for function in vars(rivals).values()
    if inspect.isfunction(function) and function.__module__.rpartition(".")[2] not in SENDING
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_say_what_they_take_return_and_show(function):
    text = inspect.getdoc(function)
    for section in (".. math::", "Args:", "Returns:", "Source:", "Example:", ">>>"):
        assert section in text, section
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^  {argument}:", text, re.MULTILINE), argument
