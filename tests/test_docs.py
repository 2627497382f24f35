"""Tests that the documentation is true: its snippets run, its links lead somewhere, its tables are the code's, its site is built.

README.md is one of its pages; what README lists in tables is compared in test_readme.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from airflow_provider_flows.emulator import Emulator
from tests.documented import PAGES, ROOT, Reader, snippets

MOST_MARKED = 8  # blocks that are looked up instead of run: those that take minutes, or serve until they are stopped
SITE = (ROOT / "docs").relative_to(ROOT)
PAGES_WITH_SNIPPETS = [page for page in PAGES if any(snippets(page))]


def name(page: Path) -> str:
    """Name a page by its place."""
    return str(page.relative_to(ROOT))


@pytest.fixture
def reader(
    airflow_home: Path, flow_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    """Give somebody who follows a page: flow runs are short, a deferred task comes back at once, and home is a folder."""
    flow_emulator.run_seconds = 0.0
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for image in ("chair.png", "table.png"):
        shutil.copy(ROOT / "example_dags" / "images" / "chair.png", tmp_path / "data" / image)
    dags_folder = airflow_home / "dags"
    yield Reader(tmp_path, dags_folder, flow_emulator, monkeypatch)
    for path in dags_folder.glob("*.py"):
        path.unlink()


@pytest.mark.parametrize("page", PAGES_WITH_SNIPPETS, ids=name)
def test_snippets_run(page: Path, reader: Reader) -> None:
    """Each block of the page does what the page says, from top to bottom."""
    for snippet in snippets(page):
        try:
            reader.follow(snippet)
        except BaseException as error:
            error.add_note(f"in {snippet}")
            raise


def test_few_snippets_are_not_run() -> None:
    """Blocks that are only looked up are few, and say why."""
    marked = [str(snippet) for page in PAGES for snippet in snippets(page) if snippet.mark == "not run"]
    assert len(marked) <= MOST_MARKED, marked


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link leads to a file that is there, so that it works on GitHub too; Sphinx looks at headings."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx is not installed here")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """`make docs` builds the site; a warning is an error, and no page asks another host for anything."""
    (command,) = re.findall(r"^\t@\$\(PYTHON\) (-m sphinx .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = [str(tmp_path) if word == f"{SITE}/_build/html" else word for word in command.split()]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(r"""<(?:link|script|img)[^>]*(?:href|src)=["'](?:https?:)?//""", page.read_text()), page
