"""Finds what stands between code fences in the documentation, and runs it as a reader would; it asserts what pages promise.

A comment above a block says what is not done with it: `<!-- not run: why -->` (a shell's words are looked up only) or
`<!-- parsed only: why -->` (a DAG is read as Airflow reads it). `<!-- prints -->` stands above what the block before prints.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import io
import json
import re
import shlex
import subprocess
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.cli.cli_parser import get_parser

from airflow_provider_flows.emulator import Emulator
from tests.support.airflow_run import DagResult, capture_log, load_dags, run_dag
from tools.docs_tables import emulator_help

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"<!-- (not run|parsed only|prints)(?:: [^>]*)? -->\s*\Z")
VARYING_TEXT = re.compile(r"\b[0-9a-f]{24}\b|\d[\d.,:]*\d")  # ids, times, sizes: another one each time


@dataclass(frozen=True)
class Snippet:
    """One block, where it stands, and what the comment above it says."""

    page: Path
    line: int
    language: str
    text: str
    directive: str | None

    def __str__(self) -> str:
        """Name the place."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path) -> Iterator[Snippet]:
    """Give the blocks of a page; what Sphinx itself runs (a directive's name between braces) is none."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        if found[2].startswith("{"):
            continue
        body = "".join(line.removeprefix(found[1]) for line in found[3].splitlines(keepends=True))
        directive = DIRECTIVE.search(text[: found.start()])
        yield Snippet(
            page, text.count("\n", 0, found.start()) + 1, found[2], body, directive and directive[1]
        )


@dataclass
class Reader:
    """Somebody who follows one page from top to bottom, with the emulator as the service and a folder as the world."""

    folder: Path
    dags_folder: Path
    emulator: Emulator
    monkeypatch: pytest.MonkeyPatch
    dags: dict[str, Any] = field(default_factory=dict)
    result: DagResult | None = None  # of the DAG that ran last
    scope: dict[str, Any] = field(default_factory=dict)  # what the page's blocks have named so far
    output: str = ""

    def follow(self, snippet: Snippet) -> None:
        """Do with a block what is done with its kind."""
        text = snippet.text.replace("127.0.0.1:8084", self.emulator.url.removeprefix("http://"))
        for theirs, ours in {"/tmp/flows": "flows", "/data/": "data/"}.items():  # noqa: S108  # a page's places, not ours
            text = text.replace(theirs, f"{self.folder}/{ours}")
        getattr(self, "_" + snippet.language)(snippet, text)

    def _text(self, snippet: Snippet, text: str) -> None:
        if snippet.directive == "prints":
            self._expect(text)

    def _json(self, _: Snippet, text: str) -> None:
        json.loads(text)

    def _yaml(self, _: Snippet, text: str) -> None:
        yaml.safe_load(text)

    def _toml(self, _: Snippet, text: str) -> None:
        tomllib.loads(text)

    def _ini(self, _: Snippet, text: str) -> None:
        configparser.ConfigParser(interpolation=None).read_string(text)

    def _python(self, snippet: Snippet, text: str) -> None:
        if text.startswith("{"):
            return self._compare_with_result(ast.literal_eval(text))
        # whoever names a poll_interval wants to see the wait; else a flow run is over at the first look
        self.emulator.run_seconds = 0.3 if "poll_interval" in text else 0.0
        if re.search(r"\bDAG\(|^@dag\b", text, re.MULTILINE):
            return self._dag(snippet, text)
        scope = self.scope | self.dags
        with self._capture_output():
            exec(compile(text, str(snippet), "exec"), scope)  # noqa: S102  # it is what the page shows
            for name, test in list(scope.items()):
                if name.startswith("test_"):
                    self.emulator.reset()
                    test(self.emulator)
                    del scope[name]
        self.scope = scope
        return None

    def _dag(self, snippet: Snippet, text: str) -> None:
        path = (
            self.dags_folder / f"{snippet.page.stem}.py"
        )  # one file a page: the next block of a page is its next version
        path.write_text(text)
        found = load_dags(path)
        assert found, "no DAG in it"
        self.dags.update(found)
        if snippet.directive == "parsed only":
            return
        for dag in found.values():
            self.result = run_dag(dag)
            assert self.result.state == "success", self.result.log

    def _compare_with_result(self, expected: dict[str, Any]) -> None:
        """Compare a dict that a page shows with what the DAG before it returned: the same keys, in order."""
        assert self.result is not None
        (returned,) = (found["return_value"] for found in self.result.xcoms.values())
        assert list(returned) == list(expected)
        assert [set(output) for output in returned["outputs"]] == [
            set(output) for output in expected["outputs"]
        ]

    def _shell(self, snippet: Snippet, text: str) -> None:
        for command in text.replace("\\\n", "").splitlines():
            argv = shlex.split(command, comments=True)
            if argv and snippet.directive == "not run":
                check_command(argv)
            elif argv:
                self._run(command, argv)

    def _console(self, snippet: Snippet, text: str) -> None:
        """Run what stands behind each `$ `, and find the lines below it in what that printed or logged."""
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            self._shell(snippet, command)
            if snippet.directive is None:
                self._expect(expected)

    def _run(self, command: str, argv: list[str]) -> None:
        """Run a command: Airflow's own in this process, which has an Airflow already, any other in a shell."""
        if argv[0] == "export":
            for name, _, value in (word.partition("=") for word in argv[1:]):
                self.monkeypatch.setenv(name, value.replace("~", str(self.folder)))
        elif argv[0] == "airflow":
            with self._capture_output(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Airflow's commands warn of is not ours
                arguments = get_parser().parse_args(argv[1:])
                arguments.func(arguments)
        else:
            done = subprocess.run(
                ["/bin/bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False
            )
            self.output = done.stdout + done.stderr
            assert done.returncode == 0, self.output

    def _expect(self, text: str) -> None:
        """Find lines in what was printed, in that order; `…` stands for anything, and ids and numbers may be others."""
        printed = iter([_normalize(line) for line in self.output.splitlines()])
        for line in (_normalize(line) for line in text.splitlines() if line.strip(" …")):
            wanted = re.compile(".*".join(map(re.escape, line.split("…"))))
            assert any(wanted.search(printed_line) for printed_line in printed), (
                f"{line!r} is not in:\n{self.output}"
            )

    @contextlib.contextmanager
    def _capture_output(self) -> Iterator[None]:
        out = io.StringIO()
        with capture_log() as lines, contextlib.redirect_stdout(out):
            yield
        self.output = "\n".join([out.getvalue(), *lines])


def _normalize(line: str) -> str:
    return " ".join(VARYING_TEXT.sub("#", line).split())


def _check_make(argv: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    goals = [word for word in argv[1:] if "=" not in word]
    assert set(goals) <= set(targets)


def _check_pip(argv: list[str]) -> None:
    assert argv[1] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in (found[1] for word in argv[2:] if (found := re.fullmatch(r"\.\[(.*)\]", word))):
        assert extra in project["optional-dependencies"]


def _check_python(argv: list[str]) -> None:
    if argv[1:3] == ["-m", "airflow_provider_flows.emulator"]:
        assert {word for word in argv[3:] if word.startswith("--")} <= set(emulator_help().split())
    else:
        assert argv[1:3] == ["-m", "venv"]


def _check_airflow(argv: list[str]) -> None:
    get_parser().parse_args(argv[1:])


COMMAND_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_python,
    "airflow": _check_airflow,
}


def check_command(argv: list[str]) -> None:
    """Find that there is what a command names, without running it: a target, an extra, a module's arguments."""
    if argv[0] == "python3.11":
        argv = ["python", *argv[1:]]
    if argv[0] in COMMAND_CHECKS:
        COMMAND_CHECKS[argv[0]](argv)
    else:
        assert argv[0] in {"git", "cd", "source", ".", "pytest"}, f"nobody looks up {argv[0]}"
