"""Sphinx's configuration of the documentation site; `make docs` builds it.

Tables that are generated from the code come from tools/docs_tables.py.
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

from tools.airflow_settings import own_environment  # noqa: E402  # requires the line above

# autodoc imports the package and thereby Airflow, which writes its settings into AIRFLOW_HOME: here a
# temporary folder.
_HOME = tempfile.TemporaryDirectory(prefix="flows-docs-")
if "airflow" not in sys.modules:
    logging.getLogger("airflow").setLevel(logging.WARNING)  # hide messages about its start
    os.environ.update(own_environment(Path(_HOME.name), Path(_HOME.name)))

from airflow_provider_flows import __version__  # noqa: E402
from tools.docs_tables import tables  # noqa: E402

project = "airflow-provider-flows"
author = "the authors of airflow-provider-flows"
release = __version__
html_title = f"Flows {release}"  # the heading of the narrow sidebar

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
# Types of other packages are documented elsewhere, and internal types in signatures are not documented.
nitpick_ignore_regex = [
    ("py:.*", r"(?!Flow|airflow_provider_flows).*"),
    ("py:class", r"airflow_provider_flows\.(core|emulator|hooks\.preflight|transport|triggerer)\..*"),
]
default_role = "code"  # docstrings put code between single backquotes

myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3  # the same links to headings as on GitHub
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
    """Register the hook that adapts docstrings to reStructuredText."""
    app.connect("autodoc-process-docstring", _escape_code_suffixes)


def _escape_code_suffixes(*args: Any) -> None:
    """Escape the boundary between code and a suffix, as in `Path`s, for reStructuredText."""
    lines: list[str] = args[-1]
    lines[:] = [re.sub(r"(`+)[^`]+\1", r"\g<0>\\ ", line) for line in lines]
