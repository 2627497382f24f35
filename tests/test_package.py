"""Tests of the wheel, the source distribution, their metadata, and the pinned development environment."""

from __future__ import annotations

import email
import email.message
import re
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest

import airflow_provider_flows

ROOT = Path(__file__).parent.parent
PACKAGE = "airflow_provider_flows"
PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+")
STRAY_FILES = re.compile(r"__pycache__|\.py[cod]$|\.DS_Store|(^|/)\.[^/]+(/|$)")


@dataclass(frozen=True)
class Distributions:
    """The files of the two archives, and the wheel's metadata."""

    wheel: set[str]
    sdist: set[str]
    metadata: email.message.Message
    entry_points: ConfigParser


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Build the source distribution, and the wheel from it, as a release does."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    info = f"{PACKAGE}-{airflow_provider_flows.__version__}"
    with zipfile.ZipFile(wheel) as archive:
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{info}.dist-info/entry_points.txt").decode())
        metadata = email.message_from_bytes(archive.read(f"{info}.dist-info/METADATA"))
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    return Distributions(in_wheel, in_sdist, metadata, entry_points)


def test_wheel_contains_only_the_package(distributions: Distributions) -> None:
    """The wheel contains every file of the package, also data and type marker, and no stray file."""
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and not STRAY_FILES.search(str(path.relative_to(ROOT)))
    }
    shipped = {name for name in distributions.wheel if ".dist-info/" not in name}
    assert shipped == files
    assert f"{PACKAGE}/py.typed" in shipped
    assert any(name.startswith(f"{PACKAGE}/emulator/") and name.endswith(".json") for name in shipped)


def test_sdist_contains_everything_for_development(distributions: Distributions) -> None:
    """The source distribution contains the package, tests, examples, tools and docs, and no stray file."""
    files = {"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "pyproject.toml", "Makefile"}
    viewer = f"{PACKAGE}/plugin/viewer/model-viewer.js"  # so that its wheel can be built without a network
    needed = {*files, "THIRD_PARTY_NOTICES.md", "hatch_build.py", f"{PACKAGE}/py.typed", viewer}
    assert needed <= distributions.sdist
    folders = {name.partition("/")[0] for name in distributions.sdist if "/" in name}
    assert {PACKAGE, "tests", "tools", "example_dags", "constraints"} <= folders
    assert folders <= {PACKAGE, "tests", "tools", "example_dags", "constraints", "docs", "benchmarks"}
    assert not {name for name in distributions.sdist if STRAY_FILES.search(name)} - {".gitignore"}


def test_metadata_names_the_package_and_its_requirements(distributions: Distributions) -> None:
    """The metadata names the distribution, its version and license, and the required Python and Airflow."""
    metadata = distributions.metadata
    assert metadata["Name"] == "airflow-provider-flows"
    assert metadata["Version"] == airflow_provider_flows.__version__
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT AND BSD-3-Clause"
    assert set(metadata.get_all("License-File", [])) == {"LICENSE", "THIRD_PARTY_NOTICES.md"}
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Framework :: Apache Airflow :: Provider" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "checks",
        "emulator",
        "images",
        "openlineage",
        "parquet",
        "pytest",
    }
    required = metadata.get_all("Requires-Dist", [])
    assert "apache-airflow>=3.1" in required
    assert not [requirement for requirement in required if "@" in requirement]


def test_entry_points_exist(distributions: Distributions) -> None:
    """The wheel's entry points name the provider info for Airflow and the emulator's fixtures for pytest."""
    assert dict(distributions.entry_points["apache_airflow_provider"]) == {
        "provider_info": f"{PACKAGE}.provider_info:get_provider_info"
    }
    assert dict(distributions.entry_points["pytest11"]) == {
        "flows_emulator": f"{PACKAGE}.emulator.pytest_plugin"
    }
    assert f"{PACKAGE}/provider_info.py" in distributions.wheel
    assert f"{PACKAGE}/emulator/pytest_plugin.py" in distributions.wheel


@pytest.mark.parametrize("file", sorted((ROOT / "constraints").iterdir()), ids=lambda path: path.name)
def test_constraints_contain_names_and_versions_only(file: Path) -> None:
    """A constraints file pins each package once, by name and version, without a source."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(names) == len(set(names))
