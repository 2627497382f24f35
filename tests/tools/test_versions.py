"""Tests of `make test-versions`: its Airflow versions, their constraints, and the result of each environment.

Tests of the behaviour on an Airflow without a feature are marked with `lacks(...)`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.versions import FEATURES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = re.findall(r"^VERSIONS \?= (\S+) (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
FLOORS = dict(
    re.fullmatch(r"([\w-]+)>=([\d.]+)", needed).groups()
    for needed in (
        *PROJECT["dependencies"],
        *(needed for extra in PROJECT["optional-dependencies"].values() for needed in extra),
    )
    if not needed.startswith(PROJECT["name"])  # an extra may need another one
)
# Airflow 3.1 itself still allows these, but the tests need newer ones.
UNTESTED_FLOORS = {"cryptography": "44.0.3", "sqlalchemy": "1.4.54"}


def pins(version: str) -> dict[str, str]:
    """Return the constraints of one of Airflow's minor versions."""
    (file,) = (ROOT / "constraints").glob(f"py311-airflow-{version}.*.txt")
    rows = [line.partition("==") for line in file.read_text().splitlines() if not line.startswith("#")]
    return {name.lower().replace("_", "-"): pinned for name, _, pinned in rows}


def test_oldest_airflow_is_the_minimum_version() -> None:
    """The oldest Airflow of the tests and its constraints are the package's minimum versions."""
    assert FLOORS["apache-airflow"] == VERSIONS[0]
    oldest = pins(VERSIONS[0])
    assert {
        name: floor for name, floor in FLOORS.items() if not f"{oldest[name]}.".startswith(f"{floor}.")
    } == UNTESTED_FLOORS


def test_newest_airflow_is_that_of_the_development_environment() -> None:
    """The newest Airflow of the tests is that of `make test`."""
    newest = pins(VERSIONS[1])["apache-airflow"]
    assert newest.startswith(f"{VERSIONS[1]}.")
    assert f"CONSTRAINTS := constraints/py311-airflow-{newest}.txt" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("feature", FEATURES)
def test_each_optional_feature_has_a_test_without_it(feature: str) -> None:
    """For each feature that an older Airflow lacks, a test covers the behaviour without it."""
    file, _, name = FEATURES[feature].fallback_test.partition("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()


@pytest.mark.parametrize(
    ("body", "ended", "code"), [("pass", "1 passed", 0), ("assert False", "1 failed", 1)]
)
def test_each_environment_has_a_result_line(tmp_path: Path, body: str, ended: str, code: int) -> None:
    """The tests run in every environment, also after a failure; the last lines have the result of each."""
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    command = [sys.executable, "-m", "tools.test_versions", sys.executable, sys.executable]
    given = ["-q", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    own = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "--", *given], cwd=ROOT, env=own, capture_output=True, text=True, check=False
    )

    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()[-2:]
    assert len(lines) == 2
    assert all(re.fullmatch(rf"Airflow \d+\.\d+\.\d+\S*: {ended} in .*", line) for line in lines), done.stdout
