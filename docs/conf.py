"""How the site is built of the pages in this folder, README, the docstrings and the examples.

    python -m sphinx -W --keep-going -b html docs build/site

Nothing is fetched while it is built, and nothing when it is read. CONTRIBUTING says what has to be installed.
"""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

# The least that Keras loads, and nothing that asks for a GPU.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_extensions"), str(ROOT), str(ROOT / "examples")]

import xent_rs  # noqa: E402
from sphinx.util import inspect  # noqa: E402

project = "xent_rs"
author = "the xent_rs developers"
copyright = author
version = release = xent_rs.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "formulas",
    "records",
    "repository",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_*", "gallery", "package_page.md"]  # the package's page is the beginning of README
templates_path = ["_templates"]
nitpicky = False
default_role = "py:obj"

# The page that computes in the browser is a part of the package: it goes with the site where it is there.
EXPLORE = Path(xent_rs.__file__).parent / "explore"
HAS_EXPLORE = (EXPLORE / "index.html").is_file()
if not HAS_EXPLORE:
    exclude_patterns.append("explore.md")

# Markdown.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# Docstrings. Types are in them; in signatures they would be longer than all else.
autodoc_typehints = "none"
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True
# PyTorch is 6 GB: without it the signatures and docstrings of xent_rs.torch are read all the same.
if importlib.util.find_spec("torch") is None:
    from sphinx.ext.autodoc.mock import _MockModule

    _MockModule.__version__ = "9999.0"  # what xent_rs.torch asks for
    autodoc_mock_imports = ["torch"]

# Examples that are run.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("pictures.scraper",),
    "reset_modules": ("pictures.style",),
    "backreferences_dir": "examples/of",
    "doc_module": ("xent_rs",),
    "download_all_examples": False,
    "write_computation_times": False,
    "show_memory": False,
    "show_signature": False,
}

# What readers see.
html_theme = "pydata_sphinx_theme"
html_title = "xent_rs"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "xent_rs"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "back_to_top_button": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {
    name: [] for name in ("index", "start", "faq", "inside", "changelog", "contributing", "explore")
}

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# `python -m sphinx -b linkcheck docs build/links` asks other servers, which refuse some who are no browser.
linkcheck_timeout = 20
linkcheck_retries = 2


def _without_explore(app, name, source):
    """Take the page that computes in the browser out of the contents where there is none."""
    if name == "index" and not HAS_EXPLORE:
        source[0] = source[0].replace("\nexplore\n", "\n")


def _copy_explore(app, exception):
    """Copy the page that computes in the browser, which Sphinx need not understand."""
    if exception is None and app.builder.name == "html" and HAS_EXPLORE:
        shutil.copytree(
            EXPLORE,
            Path(app.outdir) / "explore",
            ignore=shutil.ignore_patterns("*.py", "__pycache__"),
            dirs_exist_ok=True,
        )


def _references(app, what, name, thing, options, lines):
    """Keep the initial of an author from being taken for the first number of a list."""
    lines[:] = [re.sub(r"^(\.\. \[\d+\] )(?=[A-Z]\.)", r"\1\\", line) for line in lines]


def _signature(app, what, name, thing, options, signature, returned):
    """Return the arguments of a class whose base is not there, and none of a protocol."""
    if getattr(thing, "_is_protocol", False):
        return "", None
    if what == "class" and "__init__" in vars(thing) and signature == "(*args, **kwargs)":
        own = inspect.signature(thing.__init__, bound_method=True)
        return inspect.stringify_signature(own, show_annotation=False, show_return_annotation=False), None
    return None


def setup(app):
    """Connect what is done before and after."""
    app.connect("autodoc-process-docstring", _references, priority=400)  # before numpydoc
    app.connect("autodoc-process-signature", _signature)
    app.connect("source-read", _without_explore)
    app.connect("build-finished", _copy_explore)
