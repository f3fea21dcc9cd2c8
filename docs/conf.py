"""Configuration of the documentation (Sphinx)."""

from __future__ import annotations

import os
from importlib.metadata import version as installed_version
from itertools import dropwhile

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

project = "sphistex"
author = "sphistex developers"
copyright = f"2026, {author}"
version = release = installed_version("sphistex")

# Read the Docs has a network: there, references to other packages become links.
ONLINE = os.environ.get("READTHEDOCS") == "True"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
# Tutorials on real data are shown as tutorials/render.py has run them, and not from their sources.
exclude_patterns = ["_build", "_templates", "**.ipynb_checkpoints", "tutorials/real_data/*.md"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}  # the first one is what autosummary writes

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The other tutorials are run by every build, which fails if one of them does.
nb_execution_mode = "force"
nb_execution_excludepatterns = ["*.ipynb"]
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_output_stderr = "remove"  # warnings name files of the machine

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_type_aliases = {"ArrayLike": "~numpy.typing.ArrayLike"}
napoleon_google_docstring = False
napoleon_use_param = False
# What a function returns or adds is told in free text, not as a list of types.
napoleon_custom_sections = ["Returns"]

intersphinx_mapping = (
    {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
        "xarray": ("https://docs.xarray.dev/en/stable/", None),
    }
    if ONLINE
    else {}
)

nitpicky = True
# Types in signatures, and names in other packages, are links only where an inventory lists them under that name.
# The arrays inside of models are described in their modules only.
nitpick_ignore_regex = [
    ("py:class", r"(?!sphistex\.).*"),
    ("py:.*", r"(?!sphistex\b)\w+\..*"),
    ("py:class", r"sphistex\.nn\.(histology|picture|outcome)\..*"),
]

html_theme = "sphinx_book_theme"
html_title = "sphistex"
html_theme_options = {
    "repository_url": "https://github.com/sphistex/sphistex",
    "use_repository_button": True,
    "show_navbar_depth": 2,
}


def _public_class(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    """Find a class of ours, or a member of one, by the name it is documented under, whatever file defines it."""
    package, *parts = node.get("reftarget", "").split(".")
    inner = ".".join(dropwhile(str.islower, parts))
    if package != "sphistex" or not inner:
        return None
    for name, entry in env.domains.python_domain.objects.items():
        if name.endswith(f".{inner}"):
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)
    return None


def setup(app: Sphinx) -> None:
    """Register the hook."""
    app.connect("missing-reference", _public_class)
