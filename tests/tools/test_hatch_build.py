"""Tests of the build hook: builds with and without the viewer of 3D models, with and without a network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VIEWER = Path("airflow_provider_flows", "plugin", "viewer")
NAMES = {"model-viewer.js", "model-viewer-LICENSE"}
# pip then has no index, as on a machine without a network
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
BUILD = """
import sys
from hatchling.builders.wheel import WheelBuilder
print(*WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=[sys.argv[3]]), sep="\\n")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project as the repository has it: without the viewer."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("viewer", "__pycache__")
    shutil.copytree(ROOT / "airflow_provider_flows", folder / "airflow_provider_flows", ignore=ignored)
    for name in (
        ".gitignore",
        "LICENSE",
        "README.md",
        "THIRD_PARTY_NOTICES.md",
        "hatch_build.py",
        "pyproject.toml",
    ):
        if (ROOT / name).is_file():  # a source distribution has a .gitignore of its own
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def viewer() -> Path:
    """Return the folder of the viewer in the source tree, downloaded if it is not there."""
    folder = ROOT / VIEWER
    if not folder.is_dir():
        script = "import hatch_build, pathlib, sys; hatch_build.download(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=True)
    return folder


def build(project: Path, version: str = "standard", **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel into the project's folder `dist`."""
    command = [sys.executable, "-c", BUILD, str(project), str(project / "dist"), version]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=100
    )


def test_two_wheels_are_the_same_byte_for_byte(project: Path, viewer: Path) -> None:
    """Neither the time nor the folder of a build is in a wheel; the viewer and the licenses are."""
    shutil.copytree(viewer, project / VIEWER)
    other = project.parent / "other" / "place"
    shutil.copytree(project, other)
    for path in other.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    digests = set()
    for folder in (project, other):
        done = build(folder, **OFFLINE)
        assert done.returncode == 0, done.stderr
        (wheel,) = (folder / "dist").glob("*.whl")
        digests.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
        names = zipfile.ZipFile(wheel).namelist()
        assert {Path(name).name for name in names if Path(name).parent == VIEWER} == NAMES
        assert any(name.endswith(".dist-info/licenses/THIRD_PARTY_NOTICES.md") for name in names)
    assert len(digests) == 1


def test_a_wheel_without_the_viewer_is_not_built(project: Path) -> None:
    """Without a network, the build of a wheel fails, and its error names the package that is missing."""
    done = build(project, **OFFLINE)
    assert done.returncode != 0
    assert "pip cannot download dash-model-viewer==1.0.0" in done.stderr
    assert not (project / "dist").exists() or not list((project / "dist").iterdir())


def test_an_editable_install_without_the_viewer_has_a_warning(project: Path) -> None:
    """Without a network, an editable install works; its warning says what the pages will not do."""
    done = build(project, "editable", **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "The pages will not display 3D models" in done.stdout + done.stderr
    assert len(list((project / "dist").glob("*.whl"))) == 1
    assert not (project / VIEWER).exists()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_changed_file_is_never_shipped(project: Path, viewer: Path, name: str) -> None:
    """A file that is not the pinned one is downloaded again, or the build fails."""
    shutil.copytree(viewer, project / VIEWER)
    with (project / VIEWER / name).open("ab") as file:
        file.write(b"\n")
    done = build(project, **OFFLINE)
    assert done.returncode != 0
    assert "pip cannot download" in done.stderr


def test_another_package_of_the_same_name_is_rejected(project: Path, tmp_path: Path) -> None:
    """An index that has another file as this version of the package does not get it into a wheel."""
    packages = tmp_path / "packages"
    packages.mkdir()
    with zipfile.ZipFile(packages / "dash_model_viewer-1.0.0-py3-none-any.whl", "w") as archive:
        archive.writestr("dash_model_viewer/vendor/model-viewer-umd.min.js", "self.hostile = 1")
        archive.writestr(
            "dash_model_viewer-1.0.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: dash-model-viewer\nVersion: 1.0.0\n",
        )
        archive.writestr("dash_model_viewer-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    done = build(project, **OFFLINE, PIP_FIND_LINKS=str(packages))
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (project / VIEWER).exists()
