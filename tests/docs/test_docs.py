"""Tests of the documentation: snippets run, links resolve, tables match the code, and the site builds.

README.md is one of the pages; test_readme.py compares its tables with the code.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from airflow_provider_flows import services
from airflow_provider_flows.core import exceptions
from airflow_provider_flows.core.exceptions import FlowUnreachable
from airflow_provider_flows.core.http import Request, Resend, Response, Sleep
from airflow_provider_flows.core.retry import Retry
from airflow_provider_flows.emulator import Emulator
from tests.support.doc_snippets import PAGES, ROOT, Reader, iter_snippets
from tests.support.versions import needs

# Blocks that are checked instead of run: those that take minutes, or run until they are stopped.
MAX_BLOCKS_NOT_RUN = 8
DATA = {  # the files that the pages expect in the folder /data
    "chair.png": "example_dags/images/chair.png",
    "table.png": "example_dags/images/chair.png",
    "flow.json": "airflow_provider_flows/emulator/graphs/clibnwpno000bmc0k9hvv3y7f.json",
}
TESTED_ELSEWHERE = {
    ROOT / "docs" / "cli.md",  # test_docs_cli.py compares the output of its commands
    ROOT / "docs" / "howto" / "test_your_dag.md",  # test_test_your_dag.py follows it in a folder of its own
}
NEEDS = {
    ROOT / "docs" / "howto" / "add-a-service.md": "commands of providers",
    ROOT / "docs" / "howto" / "draw.md": "commands of providers",
    ROOT / "docs" / "install.md": "commands of providers",
    ROOT / "docs" / "tutorial.md": "task state store",
}
PAGES_WITH_SNIPPETS = [
    pytest.param(page, marks=needs(NEEDS[page]) if page in NEEDS else (), id=str(page.relative_to(ROOT)))
    for page in PAGES
    if any(iter_snippets(page)) and page not in TESTED_ELSEWHERE
]


def page_id(page: Path) -> str:
    """Return the path of a page as its test id."""
    return str(page.relative_to(ROOT))


@pytest.fixture
def reader(
    airflow_home: Path, flow_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    """Create a reader: flow runs are short, deferred tasks return at once, and home is temporary."""
    flow_emulator.run_seconds = 0.0
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name, source in DATA.items():
        shutil.copy(ROOT / source, tmp_path / "data" / name)
    dags_folder = airflow_home / "dags"
    yield Reader(tmp_path, dags_folder, flow_emulator, monkeypatch)
    for path in dags_folder.glob("*.py"):
        path.unlink()


@pytest.mark.usefixtures("airflow_database")  # commands of a page need a database
@pytest.mark.parametrize("page", PAGES_WITH_SNIPPETS)
def test_snippets_run(page: Path, reader: Reader) -> None:
    """Each block of the page runs, from top to bottom, and has the documented output."""
    for snippet in iter_snippets(page):
        try:
            reader.run(snippet)
        except BaseException as error:
            error.add_note(f"in {snippet}")
            raise


def test_few_snippets_are_not_run() -> None:
    """At most a few blocks are checked instead of run."""
    not_run = [
        str(snippet)
        for page in PAGES
        for snippet in iter_snippets(page)
        if snippet.directive == "not run" and page not in TESTED_ELSEWHERE
    ]
    assert len(not_run) <= MAX_BLOCKS_NOT_RUN, not_run


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_to_files(page: Path) -> None:
    """A relative link leads to an existing file, as GitHub requires; Sphinx checks the links to headings."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_example_is_on_its_page() -> None:
    """The page of the examples has each file, in the order of the lessons, with its first sentence."""
    sections = (ROOT / "docs" / "examples.md").read_text().split("\n## ")[1:]
    files = [re.findall(r"literalinclude\} (\S+)", section) for section in sections]
    assert sorted(name for names in files for name in names) == [
        f"../example_dags/{path.name}" for path in sorted((ROOT / "example_dags").glob("*.py"))
    ]
    for number, section in enumerate(sections, start=1):
        title, sentence = section.split("\n\n")[:2]
        (lesson,) = re.findall(
            r'^"""Lesson (.*)', (ROOT / "docs" / files[number - 1][0]).read_text(), re.MULTILINE
        )
        assert lesson.lower() == f"{number}: {sentence}".lower()
        assert title == f"{number}. `{Path(files[number - 1][0]).stem}`"


def test_extras_are_listed() -> None:
    """The page of the installation has each extra of the package, with all of its libraries."""
    page = (ROOT / "docs" / "install.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    assert {extra: libraries.split(", ") for extra, libraries in rows.items()} == {
        extra: [re.split(r">=", library)[0] for library in libraries]
        for extra, libraries in project["optional-dependencies"].items()
    }


# tables of the pages ------------------------------------------------------------------------------------

KINDS = {"poll": Resend.ALWAYS, "create": Resend.IF_REFUSED, "start": Resend.IF_NEVER_ARRIVED}


def is_retried(resend: Resend, result: Response | FlowUnreachable) -> bool:
    """Whether core/retry.py sends a request a second time after this result."""
    conversation = Retry(attempts=2, jitter=lambda: 0.0).send(Request("GET", "/flows", resend=resend))
    next(conversation)
    try:
        if isinstance(result, FlowUnreachable):
            step = conversation.throw(result)
        else:
            step = conversation.send(result)
    except (StopIteration, FlowUnreachable):
        return False
    return isinstance(step, Sleep)


def test_requests_are_retried_as_documented() -> None:
    """Each cell of the table of single requests matches core/retry.py."""
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
    results: list[tuple[Response | FlowUnreachable, ...]] = [
        (Response(429),),
        (Response(502), Response(503), Response(504)),
        (FlowUnreachable("", may_have_arrived=False),),
        (FlowUnreachable("", may_have_arrived=True),),
        (Response(200), Response(401), Response(404), Response(409), Response(422), Response(500)),
    ]
    assert [row[0].split()[0].strip(",") for row in rows] == list(KINDS)
    for row, resend in zip(rows, KINDS.values(), strict=True):
        for cell, same in zip(row[1:], results, strict=True):
            assert {is_retried(resend, result) for result in same} == {cell == "yes"}, row


@needs("retry policies")
def test_permanent_errors_are_the_documented_ones() -> None:
    """The page has exactly the errors after which Airflow schedules no other try."""
    from airflow_provider_flows.retry_policy import PERMANENT_ERRORS

    page = (ROOT / "docs" / "explanation" / "retries.md").read_text()
    assert set(re.findall(r"^\| `(\w+)`: .* \| no \|$", page, re.MULTILINE)) == {
        error.__name__ for error in PERMANENT_ERRORS
    }


def test_reference_names_every_error() -> None:
    """The page of errors has every class of the tree, in its order."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    known = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, exceptions.FlowError)
    ]
    assert re.findall(r"autoexception:: (\w+)", page) == known


def test_reference_has_every_name_for_a_service() -> None:
    """The reference has each name that `airflow_provider_flows.services` exports, and no other."""
    pages = {
        name: (ROOT / "docs" / "reference" / f"{name}.md").read_text()
        for name in ("services", "runs", "errors")
    }
    documented = {
        name for page in pages.values() for name in re.findall(r"auto\w+:: (?:[\w.]*\.)?(\w+)", page)
    } | set(re.findall(r"`(\w+)(?:\[\w\])?`", pages["services"]))
    assert set(services.__all__) - documented == set()
    section = pages["services"].split("## The connection")[0]
    assert set(re.findall(r"auto\w+:: (\w+)", section)) <= set(services.__all__)


# the site -----------------------------------------------------------------------------------------------


@needs("retry policies")  # the reference documents FlowsRetryPolicy
@pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx is not installed here")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """`make docs` builds the site without warnings, and no page loads anything from another host."""
    (command,) = re.findall(
        r"^\t@\$\(PYTHON\) (-m sphinx .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    words = [str(tmp_path) if word == "docs/_build/html" else word for word in command.split()]
    # in a separate process, because autodoc modifies the signatures of the imported objects
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(
            r"""<(?:link|script|img)[^>]*(?:href|src)=["'](?:https?:)?//""", page.read_text()
        ), page
