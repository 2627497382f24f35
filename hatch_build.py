"""The build hook that adds the viewer of 3D models, `<model-viewer>`, to the package.

The viewer is one JavaScript file of 1 MB, which is not in the repository. pip downloads the package that
contains it; the package and the file are pinned by their hashes. A wheel is not built without the file. An
editable install without a network is: its pages then offer models for download only.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "dash-model-viewer==1.0.0"  # carries model-viewer 4.3.1; it is never installed
SOURCE_HASH = "sha256:e5345afa41851b8a64d7f56af54e2a9ade7054766d710499dcd0d4372756bb43"
FOLDER = "airflow_provider_flows/plugin/viewer"
# Names in FOLDER; for each, the name in the package and the SHA-256.
FILES = {
    "model-viewer.js": (
        "dash_model_viewer/vendor/model-viewer-umd.min.js",
        "73a3ebc7a8db1311b2f17be9b526285b5dede6e8c7a6f48eaee4fe1cc7713b3b",
    ),
    "model-viewer-LICENSE": (
        "dash_model_viewer/vendor/model-viewer-LICENSE",
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    ),
}
EDITABLE = "editable"  # a version of a wheel, as hatchling calls it


class ViewerError(Exception):
    """The viewer could not be downloaded, or is not the pinned one."""


class ViewerHook(BuildHookInterface):
    """Download the viewer unless it is there, and add it to what is built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the viewer before the build.

        :param version: of the target; `editable` for an editable install.
        :raises ViewerError: there is no viewer, and the install is not an editable one.
        """
        folder = Path(self.root) / FOLDER
        try:
            if not is_complete(folder):
                download(folder)
        except ViewerError as error:
            if version != EDITABLE:
                raise
            self.app.display_warning(f"The pages will not display 3D models, only offer them: {error}")
            return
        build_data["artifacts"] += [f"/{FOLDER}/{name}" for name in FILES]


def is_complete(folder: Path) -> bool:
    """Return whether a folder has all files as they are pinned."""
    return all(
        (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        for name, (_, digest) in FILES.items()
    )


def download(folder: Path) -> None:
    """Download the files into a folder.

    :raises ViewerError: pip cannot download the package, or a file is not the pinned one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(f"{SOURCE} --hash={SOURCE_HASH}\n")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", temporary]
        done = subprocess.run(  # noqa: S603  # pip with fixed arguments
            [*command, "--requirement", str(requirements)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise ViewerError(f"pip cannot download {SOURCE}, which contains their viewer: {reason}")
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
            contents = {name: wheel.read(member) for name, (member, _) in FILES.items()}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != FILES[name][1]:
            raise ViewerError(f"{FILES[name][0]} in {SOURCE} is not the pinned file, by its SHA-256")
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
