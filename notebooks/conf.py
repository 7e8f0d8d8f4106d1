"""The documentation site: `python -m sphinx -W -b html notebooks build/docs`."""

import pathlib
import re
import sys

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

import public_names  # noqa: E402

import dcasgd_jax  # noqa: E402

project = "dcasgd_jax"
author = copyright = "the dcasgd_jax authors"
release = version = dcasgd_jax.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["**.ipynb_checkpoints", "studies/**/*.md"]
nitpicky = True  # a link that leads nowhere is a warning, and -W makes it an error
nitpick_ignore = [("py:exc", "MissingExtraError")]

nb_execution_mode = "off"  # the notebooks hold their outputs
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

html_theme = "furo"
html_title = f"dcasgd_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

default_role = "literal"  # docstrings write `code`, as pages do
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "none"  # the text of each argument says what it is, with shapes and units
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = ["Source", ("Warns", "returns_style")]


class LinkPublicNames(SphinxTransform):
    """Turns code that names something public, such as `sim.simulate(...)`, into a link to it."""

    default_priority = 400
    targets = public_names.links()

    def apply(self, **kwargs) -> None:
        """Works on one page or docstring."""
        for literal in list(self.document.findall(nodes.literal)):
            named = re.match(r"([A-Za-z_][\w.]*)(\(.*\))?$", literal.astext())
            target = named and self.targets.get(named[1])
            if named and not target:  # a method is described with its class
                target = self.targets.get(named[1].rpartition(".")[0])
            unlinked = (nodes.reference, nodes.title, addnodes.pending_xref)
            if not target or isinstance(literal.parent, unlinked):
                continue
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refexplicit=True,
                refwarn=True, refdoc=self.env.current_document.docname,
            )  # fmt: skip
            literal.replace_self(link)
            link += literal


def escape(app, what, name, obj, options, lines: list[str]) -> None:
    """Norms such as |g| and plurals of code mean something else in reStructuredText."""
    math_indent = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if math_indent is not None and line.strip() and indent <= math_indent:
            math_indent = None
        if line.lstrip().startswith(".. math::"):
            math_indent = indent
        if math_indent is None and not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(`[^`]*`)", line)
            between = [part.replace("|", "\\|") for part in parts[::2]]
            # As in `Param`s: code ends only where no letter follows.
            parts[::2] = between[:1] + [re.sub(r"^(?=\w)", "\\\\ ", part) for part in between[1:]]
            lines[number] = "".join(parts)


_of_attributes: dict[str, list[str]] = {}


def hide_from_napoleon(app, what, name, obj, options, lines: list[str]) -> None:
    """Napoleon takes what an attribute's text has before a colon for its type."""
    if what in ("attribute", "data", "property"):
        _of_attributes[name], lines[:] = list(lines), []


def show_again(app, what, name, obj, options, lines: list[str]) -> None:
    """Behind napoleon."""
    lines[:] = _of_attributes.pop(name, lines)


def skip_what_says_nothing(app, what, name, obj, skip: bool, options) -> bool | None:
    """Fields of named tuples, and what every protocol, law or engine has."""
    if type(obj).__name__ == "_tuplegetter":  # the text of its class describes it
        return True
    of_each = name in {"schedule", "server", "times", "run", "check"}
    whose = getattr(obj, "__qualname__", "")
    return True if of_each and whose and not whose.startswith("Protocol.") else None


def show_default_curvature(app, what, name, obj, options, signature, returns):
    """The default of `curvature=` as one writes it, not as the source names it."""
    shown = re.sub(r"(compensating\.)?ADAPTIVE", "adaptive()", signature or "")
    shown = shown.replace("=_SQUARED", "=squared_gradient()")
    return shown or None, returns


def setup(app) -> None:
    """Called by Sphinx."""
    app.add_transform(LinkPublicNames)
    app.connect("autodoc-process-docstring", hide_from_napoleon, priority=400)
    app.connect("autodoc-process-docstring", show_again, priority=550)
    app.connect("autodoc-process-docstring", escape, priority=600)
    app.connect("autodoc-process-signature", show_default_curvature)
    app.connect("autodoc-skip-member", skip_what_says_nothing)
