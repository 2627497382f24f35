"""Tests that a service in a package of its own works with every part of this provider.

The checks are in third_service/checks.py. They run in an Airflow that has no openlineage provider.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "services" / "third_service"


@pytest.mark.timeout(
    300
)  # it starts an Airflow of its own: seconds, and minutes on a machine that has other things to do
def test_a_third_service_needs_nothing_but_its_module(tmp_path: Path) -> None:
    """Its checks pass in a process whose Airflow finds the installed package by its entry point."""
    site = tmp_path / "site"
    install = [
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(site),
        str(HERE),
    ]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    modules = [path.relative_to(HERE) for path in (HERE / "brewery_flows").glob("*.py")]
    assert len(modules) == 3
    assert all((site / path).read_bytes() == (HERE / path).read_bytes() for path in modules)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, ROOT)))}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.support.without_openlineage"]
    command = [sys.executable, "-m", "pytest", *options, str(HERE / "checks.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
