"""Which names the reference describes, and how code refers to them."""

import pathlib
import re

# How code refers to the members of each module, the shortest last. A bare name is a link only where
# it is unmistakable: not `train`, `load` or `task`.
PREFIXES = {
    "dcasgd_jax": ("dc", "dcasgd_jax", ""),
    "dcasgd_jax.curvatures": ("dc.curvatures", "curvatures", ""),
    "dcasgd_jax.preconditioners": ("dc.preconditioners", "preconditioners"),
    "dcasgd_jax.strengths": ("dc.strengths", "strengths", ""),
    "dcasgd_jax.rivals": ("dc.rivals", "rivals", ""),
    "dcasgd_jax.rivals.sends": ("dc.rivals.sends", "rivals.sends", "sends", ""),
    "dcasgd_jax.sim": ("sim", "dc.sim", ""),
    "dcasgd_jax.diagnostics": ("dc.diagnostics", "diagnostics", ""),
    "dcasgd_jax.plots": ("plots", ""),
    "dcasgd_jax.digits": ("digits",),
    "dcasgd_jax.runtime.ray": ("runtime.ray", "ray"),
    "dcasgd_jax.integrations.nnx": ("integrations.nnx", "dc_nnx"),
    "dcasgd_jax.integrations.linen": ("integrations.linen", "dc_linen"),
}
DOCUMENTED = re.compile(r"^\.\. (?:auto(?:function|class|data)|data):: (\S+)", re.MULTILINE)
MODULE = re.compile(r"^\.\. (?:current)?module:: (\S+)", re.MULTILINE)


def documented_names(page: str) -> list[str]:
    """Full names of everything that an API page describes."""
    parts = MODULE.split(page)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [f"{module}.{name}" for module, text in pairs for name in DOCUMENTED.findall(text)]


def links() -> dict[str, str]:
    """What may stand in code -> the full name that it means."""
    found: dict[str, set[str]] = {}
    for page in sorted((pathlib.Path(__file__).parent / "api").glob("*.md")):
        for full in documented_names(page.read_text(encoding="utf-8")):
            module, _, name = full.rpartition(".")
            for prefix in (*PREFIXES.get(module, ()), module):
                found.setdefault(f"{prefix}.{name}".lstrip("."), set()).add(full)
    return {code: full.pop() for code, full in found.items() if len(full) == 1}
