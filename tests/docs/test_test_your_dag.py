"""Follows docs/howto/test_your_dag.md literally: its files in an own folder, its commands in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.doc_snippets import ROOT, iter_snippets

PAGE = ROOT / "docs" / "howto" / "test_your_dag.md"
FILE_BLOCK = re.compile(r"`([\w./]+\.(?:py|ini))`[^`\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TREE_FILES = re.compile(r"[─ ](\w+\.\w+)$", re.MULTILINE)


def write_project(folder: Path) -> list[Path]:
    """Write each file of the page below a folder; a file that has several blocks has them in order."""
    written: dict[Path, str] = {}
    for name, block in FILE_BLOCK.findall(PAGE.read_text()):
        path = folder / name
        written[path] = f"{written[path]}\n\n{block}" if path in written else block
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("/tmp/flows", str(folder / "flows")))  # noqa: S108  # the page's folder
    return list(written)


@pytest.mark.timeout(300)  # two processes that import Airflow
def test_all_tests_of_the_page_pass(tmp_path: Path) -> None:
    """A reader who writes the files and runs the commands, and does nothing else, sees all tests pass."""
    project, home = tmp_path / "project", tmp_path / "home"
    home.mkdir()
    files = write_project(project)
    commands = [
        line
        for snippet in iter_snippets(PAGE)
        if snippet.language == "shell"
        for line in snippet.text.splitlines()
        if not line.startswith("pip ")  # this environment has the packages
    ]
    # a shell of a user: with this environment's commands, and none of the test session's settings
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
    }

    done = subprocess.run(
        ["/bin/bash", "-ec", "\n".join(commands)],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    tests = sum(text.count("\ndef test_") for text in (path.read_text() for path in files))
    assert tests >= 4
    assert re.search(rf"=+ {tests} passed", done.stdout), done.stdout + done.stderr
    assert sorted(path.name for path in files) == sorted(TREE_FILES.findall(PAGE.read_text()))
