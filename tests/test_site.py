"""The site: every public name is on a page, every link leads somewhere; one version, one pin."""

import importlib
import importlib.util
import inspect
import re
import tomllib

import pages
import pytest

import dcasgd_jax as dc
from dcasgd_jax import diagnostics, digits, plots, rivals, sim

SITE = pages.ROOT / "notebooks"
MODULES = [
    *(
        dc,
        dc.curvatures,
        dc.preconditioners,
        dc.strengths,
        rivals,
        rivals.sends,
        sim,
        diagnostics,
        plots,
        digits,
    ),
    "dcasgd_jax.integrations.nnx",
    "dcasgd_jax.integrations.linen",
    "dcasgd_jax.runtime.ray",
]


def public_names():
    """The module of the site that knows the reference."""
    spec = importlib.util.spec_from_file_location("public_names", SITE / "public_names.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public(module):
    """Names that users may import from a module; of one with `__all__`, those."""
    if hasattr(module, "__all__"):
        names = module.__all__
    else:
        of_package = lambda value: getattr(value, "__module__", "").startswith("dcasgd_jax")
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and (of_package(value) or name.isupper())
        ]
    return {name for name in names if not inspect.ismodule(getattr(module, name))}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: getattr(m, "__name__", m))
def test_every_public_name_is_on_a_page_of_the_reference(module):
    module = importlib.import_module(module) if isinstance(module, str) else module
    reference = public_names()
    described = [
        name
        for page in (SITE / "api").glob("*.md")
        for name in reference.documented_names(page.read_text(encoding="utf-8"))
    ]
    assert len(set(described)) == len(described), "described twice"
    missing = {f"{module.__name__}.{name}" for name in public(module)} - set(described)
    assert not missing


def test_code_becomes_a_link_where_it_is_unmistakable():
    links = public_names().links()
    assert links["sim.simulate"] == links["simulate"] == "dcasgd_jax.sim.simulate"
    assert links["dc.curvatures.adaptive"] == "dcasgd_jax.curvatures.adaptive"
    assert "train" not in links
    assert "load" not in links


@pytest.mark.parametrize("path", [*pages.PAGES, pages.README], ids=lambda path: path.stem)
def test_links_to_files_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
    for named in re.findall(r"`((?:tests|dcasgd_jax|notebooks)/[\w/.*-]+)`", text):
        found = list(pages.ROOT.glob(named)) if "*" in named else [pages.ROOT / named]
        assert found, named
        assert all(place.exists() for place in found), named


def test_the_version_is_the_same_everywhere():
    citation = (pages.ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {dc.__version__}\n" in citation
    assert f"version = {{{dc.__version__}}}" in pages.README.read_text(encoding="utf-8")
    pyproject = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in pyproject["project"]


def test_pre_commit_has_the_pins_of_the_extra_test():
    hooks = (pages.ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pyproject = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = pyproject["project"]["optional-dependencies"]["test"]
    pins = {pin for pin in extra if "==" in pin}
    assert {pin.partition("==")[0] for pin in pins} == {"pyright", "ruff"}
    assert set(re.findall(r"[\w-]+==[\w.]+", hooks)) == pins


def test_the_readme_is_one_screen():
    assert len(pages.README.read_text(encoding="utf-8").splitlines()) <= 150
