"""The programs, under names that no folder of tests has."""

import importlib.util

from .conftest import STUDIES


def load(name):
    spec = importlib.util.spec_from_file_location(f"program_{name}", STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
