"""Tests of `make test-versions`: its versions, their constraints, and the result of each environment.

Tests of the behaviour on an Airflow without a feature are marked with `lacks(...)`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.versions import FEATURES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
VERSIONS = re.findall(r"^VERSIONS \?= (\S+) (\S+)$", MAKEFILE, re.MULTILINE)[0]
PAGE = (ROOT / "docs" / "explanation" / "airflow_versions.md").read_text()
FLOORS = dict(
    re.fullmatch(r"([\w-]+)>=([\d.]+)", needed).groups()
    for needed in (
        *PROJECT["dependencies"],
        *(needed for extra in PROJECT["optional-dependencies"].values() for needed in extra),
    )
    if not needed.startswith(PROJECT["name"])  # an extra may need another one
)
# Airflow 3.1 itself still allows these, but the tests need newer ones.
UNTESTED_FLOORS = {
    "cryptography": "44.0.3",
    "jsonschema": "4.23",
    "referencing": "0.35",
    "sqlalchemy": "1.4.54",
}


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make without the settings of a make that runs the tests."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VERSIONS", "PYTHONS"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        [shutil.which("make") or "make", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


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
    assert f"CONSTRAINTS := constraints/py311-airflow-{newest}.txt" in MAKEFILE


def test_page_lists_the_airflow_versions_with_constraints() -> None:
    """The command that the page gives for every Airflow has each minor version that has constraints."""
    files = [file.name for file in (ROOT / "constraints").glob("py311-airflow-*.txt")]
    minors = sorted(int(re.fullmatch(r"py311-airflow-3\.(\d+)\.\w+\.txt", name)[1]) for name in files)
    assert re.findall(r'VERSIONS="([\d. ]+)"`', PAGE) == [" ".join(f"3.{minor}" for minor in minors)]


def test_page_lists_the_python_versions_of_the_classifiers() -> None:
    """The classifiers, the page's table and its command have the same versions, with the minimum first."""
    classifiers = re.findall(
        r"^Programming Language :: Python :: (\d\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE
    )
    (default,) = re.findall(r"^PYTHONS \?= (\S+)$", MAKEFILE, re.MULTILINE)
    assert PROJECT["requires-python"] == f">={default}"
    _, _, section = PAGE.partition("## Python versions\n")
    assert re.findall(r"^\| (\d\.\d+) \|", section.partition("\n## ")[0], re.MULTILINE) == classifiers
    (others,) = re.findall(r'VERSIONS=(?:\S+) PYTHONS="([\d. ]+)"`', section)
    assert [default, *others.split()] == classifiers
    for file in (ROOT / "constraints").glob("*-airflow-*.txt"):
        assert file.name.startswith(f"py{default.replace('.', '')}-")


@pytest.mark.parametrize(
    ("settings", "environments"),
    [
        ({}, [".venv-airflow-3.1", ".venv"]),
        ({"VERSIONS": "3.2"}, [".venv-airflow-3.2"]),
        (
            {"VERSIONS": "3.3 3.4", "PYTHONS": "3.11 3.12"},
            [
                ".venv",
                ".venv-airflow-3.4",
                ".venv-airflow-3.3-python-3.12",
                ".venv-airflow-3.4-python-3.12",
            ],
        ),
    ],
    ids=["default", "Airflow", "Python"],
)
def test_make_has_an_environment_for_each_pair(settings: dict[str, str], environments: list[str]) -> None:
    """Each pair of versions has an environment of its own, with the constraints of its Airflow."""
    assigned = [f"{name}={value}" for name, value in settings.items()]
    done = run_make("--dry-run", "--always-make", "test-versions", *assigned)

    assert done.returncode == 0, done.stderr
    (started,) = re.findall(r"-m tools.test_versions (.*) -- ", done.stdout)
    assert started.split() == [f"{environment}/bin/python" for environment in environments]
    for environment in environments:
        version, _, python = environment.removeprefix(".venv-airflow-").partition("-python-")
        version = VERSIONS[1] if version == ".venv" else version
        (file,) = re.findall(
            rf"^{re.escape(environment)}/bin/python .*--constraint (\S+) pip", done.stdout, re.MULTILINE
        )
        assert (ROOT / file).match(f"constraints/py311-airflow-{version}.*.txt")
        assert f"Setting up {environment} with" in done.stdout
        assert not python or f"for name in python{python};" in done.stdout


def test_make_names_the_python_that_is_missing() -> None:
    """A Python that is not installed is named, and no environment is left behind."""
    done = run_make("test-versions", f"VERSIONS={VERSIONS[1]}", "PYTHONS=3.99")
    assert done.returncode != 0
    assert "Python 3.99 is needed: there is no python3.99 in PATH." in done.stderr
    assert not (ROOT / f".venv-airflow-{VERSIONS[1]}-python-3.99").exists()


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
    assert all(
        re.fullmatch(rf"Airflow \d+\.\d+\.\w+, Python 3\.\d+\.\w+: {ended} in .*", line) for line in lines
    ), done.stdout
