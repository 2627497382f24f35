"""How Sphinx builds the site from the pages in this folder; `make docs` runs it.

It writes no page: the tables that come from the code are made in tools/docs_tables.py.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tools.airflow_settings import own_environment  # noqa: E402  # it needs the line above

# autodoc imports the package, and with it Airflow, which writes its settings into a folder: into one that is thrown away.
_HOME = tempfile.TemporaryDirectory(prefix="flows-docs-")
if "airflow" not in sys.modules:
    logging.getLogger("airflow").setLevel(logging.WARNING)  # what it tells of its start is no warning
    os.environ.update(own_environment(Path(_HOME.name), Path(_HOME.name)))

from airflow_provider_flows import __version__  # noqa: E402
from tools.docs_tables import tables  # noqa: E402

project = "airflow-provider-flows"
author = "the authors of airflow-provider-flows"
release = __version__
html_title = f"Flows {release}"  # short, for it stands above the list of pages

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
# other people's types have their pages elsewhere, and some of the emulator's have none
nitpick_ignore_regex = [
    ("py:.*", r"(?!Flow|airflow_provider_flows).*"),
    ("py:class", r"airflow_provider_flows\.emulator\..*"),
]
default_role = "code"  # our docstrings put code between single backquotes

myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3  # so that a link to a heading is the same here and on GitHub
myst_substitutions = tables()

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Let autodoc read our docstrings as they are written."""
    app.connect("autodoc-process-docstring", _separated)


def _separated(*given: Any) -> None:
    """Part code from the letters that follow it, as in `Path`s: a docstring may join them, reStructuredText may not."""
    lines: list[str] = given[-1]
    lines[:] = [re.sub(r"(`+)[^`]+\1", r"\g<0>\\ ", line) for line in lines]
