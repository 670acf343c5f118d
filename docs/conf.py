"""Sphinx's configuration: `python -m sphinx -W --keep-going -b html docs docs/_build`."""

import shutil
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # models and training are not installed

# Sphinx reads pages below this folder only; docs/notebooks is ignored by git.
shutil.rmtree(DOCS / "notebooks", ignore_errors=True)
shutil.copytree(ROOT / "notebooks", DOCS / "notebooks", ignore=shutil.ignore_patterns(".*"))

project = "bop_optax"
author = "The bop_optax authors"
copyright = "2026, the bop_optax authors"
release = version = installed_version("bop_optax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]  # IPython's "!" in the notebooks
default_role = "py:obj"  # single backticks in docstrings

myst_enable_extensions = ["colon_fence", "dollarmath", "smartquotes"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test executes the notebooks

# Packages of extras of their own.
autodoc_mock_imports = ["jax2onnx", "larq_compute_engine", "onnx", "tensorflow"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have dtypes and shapes
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "bop_optax"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {
    "navbar_persistent": [],  # the side bar has the search field
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
