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

from airflow_provider_flows.core import exceptions
from airflow_provider_flows.core.exceptions import FlowUnreachable
from airflow_provider_flows.core.http import Request, Resend, Response, Sleep
from airflow_provider_flows.core.retry import Retry
from airflow_provider_flows.emulator import Emulator
from tests.support.doc_snippets import PAGES, ROOT, Reader, snippets
from tests.support.versions import needs

MOST_MARKED = (
    8  # blocks that are looked up instead of run: those that take minutes, or serve until they are stopped
)
DATA = {  # what readers have in their folder /data
    "chair.png": "example_dags/images/chair.png",
    "table.png": "example_dags/images/chair.png",
    "flow.json": "airflow_provider_flows/emulator/graphs/clibnwpno000bmc0k9hvv3y7f.json",
}
PLAYED_ELSEWHERE = {ROOT / "docs" / "cli.md"}  # test_docs_cli.py compares each line that its commands write
NEEDS = {
    ROOT / "docs" / "howto" / "add-a-service.md": "commands of providers",
    ROOT / "docs" / "howto" / "draw.md": "commands of providers",
    ROOT / "docs" / "tutorial.md": "task state store",
}
PAGES_WITH_SNIPPETS = [
    pytest.param(page, marks=needs(NEEDS[page]) if page in NEEDS else (), id=str(page.relative_to(ROOT)))
    for page in PAGES
    if any(snippets(page)) and page not in PLAYED_ELSEWHERE
]


def named(page: Path) -> str:
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
    for name, theirs in DATA.items():
        shutil.copy(ROOT / theirs, tmp_path / "data" / name)
    dags_folder = airflow_home / "dags"
    yield Reader(tmp_path, dags_folder, flow_emulator, monkeypatch)
    for path in dags_folder.glob("*.py"):
        path.unlink()


@pytest.mark.usefixtures("airflow_database")  # a page's commands may be the first that want one
@pytest.mark.parametrize("page", PAGES_WITH_SNIPPETS)
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
    marked = [str(snippet) for page in PAGES for snippet in snippets(page) if snippet.directive == "not run"]
    assert len(marked) <= MOST_MARKED, marked


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link leads to a file that is there, so that it works on GitHub too; Sphinx looks at headings."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


# what the pages list ----------------------------------------------------------------------------------------------------

KINDS = {"look": Resend.ALWAYS, "make": Resend.IF_REFUSED, "start": Resend.IF_NEVER_ARRIVED}


def sent_again(resend: Resend, answer: Response | FlowUnreachable) -> bool:
    """Tell whether a request is sent a second time after this, by asking the code that decides it."""
    talk = Retry(attempts=2, jitter=lambda: 0.0).send(Request("GET", "/flows", resend=resend))
    next(talk)
    try:
        step = talk.throw(answer) if isinstance(answer, FlowUnreachable) else talk.send(answer)
    except (StopIteration, FlowUnreachable):
        return False
    return isinstance(step, Sleep)


def test_requests_are_sent_again_as_the_page_says() -> None:
    """Each cell of the table of single requests is what flow/retry.py does."""
    page = (
        (ROOT / "docs" / "explanation" / "retries.md")
        .read_text()
        .split("## A single request")[1]
        .split("\n## ")[0]
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ")
    ][2:]
    answers: list[tuple[Response | FlowUnreachable, ...]] = [
        (Response(429),),
        (Response(502), Response(503), Response(504)),
        (FlowUnreachable("", may_have_arrived=False),),
        (FlowUnreachable("", may_have_arrived=True),),
        (Response(200), Response(401), Response(404), Response(409), Response(422), Response(500)),
    ]
    assert [row[0].split()[0].strip(",") for row in rows] == list(KINDS)
    for row, resend in zip(rows, KINDS.values(), strict=True):
        for cell, same in zip(row[1:], answers, strict=True):
            assert {sent_again(resend, answer) for answer in same} == {cell == "yes"}, row


@needs("retry policies")
def test_hopeless_errors_are_the_ones_the_page_names() -> None:
    """The page names just those errors after which there is no other try."""
    from airflow_provider_flows.retry_policy import PERMANENT_ERRORS

    page = (ROOT / "docs" / "explanation" / "retries.md").read_text()
    assert set(re.findall(r"^\| `(\w+)`: .* \| no \|$", page, re.MULTILINE)) == {
        error.__name__ for error in PERMANENT_ERRORS
    }


def test_reference_names_every_error() -> None:
    """The page of errors has every class of the tree."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    known = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, exceptions.FlowError)
    ]
    assert re.findall(r"autoexception:: (\w+)", page) == known


# the site ---------------------------------------------------------------------------------------------------------------


@needs("retry policies")  # the reference has ours
@pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx is not installed here")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """`make docs` builds the site; a warning is an error, and no page asks another host for anything."""
    (command,) = re.findall(
        r"^\t@\$\(PYTHON\) (-m sphinx .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    words = [str(tmp_path) if word == "docs/_build/html" else word for word in command.split()]
    # a process of its own, because autodoc writes into the signatures that it reads
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(
            r"""<(?:link|script|img)[^>]*(?:href|src)=["'](?:https?:)?//""", page.read_text()
        ), page
