"""Tests that services of other shapes work with every part of this provider.

The checks are in other_services/checks.py. They run in an Airflow in which their package is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.provider_packages import install_provider

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "services" / "other_services"
MODULES = ("__init__.py", "provider_info.py", "predictions.py", "queued.py")


@pytest.mark.timeout(300)  # it starts an Airflow of its own
def test_other_services_need_nothing_but_their_modules(tmp_path: Path) -> None:
    """A predictions API and a queue API pass their checks as installed packages."""
    modules = {f"other_services/{name}": (HERE / name).read_text() for name in MODULES}
    install_provider(tmp_path, "other-services", "other_services.provider_info:get_provider_info", modules)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "checks.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
