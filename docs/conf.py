"""How Sphinx builds the guide: `make docs`, or `sphinx-build -W docs build/docs`."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from fedsim import __version__

# Examples call the command line and a notebook runs: both from the top of the checkout, where the paths hold.
HERE = Path(__file__).parent
shutil.copyfile(HERE.parent / "experiments" / "notebook.ipynb", HERE / "notebook-tour.ipynb")
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "fedsim"
author = "The fedsim maintainers"
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The notebook is kept without its outputs, and run whenever the guide is built.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
myst_url_schemes = ("http", "https", "mailto")
suppress_warnings = ["myst.xref_missing"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"fedsim {release}"
html_copy_source = False
html_show_copyright = False


_ARGUMENT = re.compile(r"([a-z_][\w., ]*): (.+)")


def _arguments_as_list(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make a list of the lines 'name: what it is' of our docstrings, in place."""
    made: list[str] = []
    inside = False
    for line in lines:
        match = _ARGUMENT.fullmatch(line)
        if match:
            made += [] if inside else [""]
            made.append(f"* **{match[1]}**: {match[2]}")
            inside = True
        elif inside and line.startswith("    "):
            made.append(f"  {line.strip()}")
        else:
            made += [""] if inside and line.strip() else []
            made.append(line)
            inside = False
    lines[:] = made


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _arguments_as_list, priority=100)
