"""Extracts the code blocks of the documentation and runs them as a reader would.

A comment above a block changes its treatment: `<!-- not run: why -->` (names in a shell command are only
checked), `<!-- parsed only: why -->` (a DAG is only parsed), `<!-- prints -->` (the block is the output of
the previous one).
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
VARYING_TEXT = re.compile(r"\b[0-9a-f]{24}\b|\d[\d.,:]*\d")  # ids, times, sizes: they differ in each run


@dataclass(frozen=True)
class Snippet:
    """One code block, its location, and the directive above it."""

    page: Path
    line: int
    language: str
    text: str
    directive: str | None

    def __str__(self) -> str:
        """Return the location."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def iter_snippets(page: Path) -> Iterator[Snippet]:
    """Yield the code blocks of a page, without Sphinx's directives (a name between braces)."""
    text = page.read_text()
    for fence in FENCE.finditer(text):
        if fence[2].startswith("{"):
            continue
        body = "".join(line.removeprefix(fence[1]) for line in fence[3].splitlines(keepends=True))
        directive = DIRECTIVE.search(text[: fence.start()])
        yield Snippet(
            page, text.count("\n", 0, fence.start()) + 1, fence[2], body, directive and directive[1]
        )


@dataclass
class Reader:
    """Runs the blocks of a page from top to bottom, with the emulator and a temporary folder."""

    folder: Path
    dags_folder: Path
    emulator: Emulator
    monkeypatch: pytest.MonkeyPatch
    dags: dict[str, Any] = field(default_factory=dict)
    result: DagResult | None = None  # of the last DAG
    scope: dict[str, Any] = field(default_factory=dict)  # names that the page's blocks have defined
    output: str = ""

    def run(self, snippet: Snippet) -> None:
        """Run or check a block according to its language."""
        text = snippet.text.replace("127.0.0.1:8084", self.emulator.url.removeprefix("http://"))
        paths = {"/tmp/flows": "flows", "/data/": "data/"}  # noqa: S108  # paths on the page, replaced by temporary ones
        for documented, replacement in paths.items():
            text = text.replace(documented, f"{self.folder}/{replacement}")
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
        # A snippet with a poll_interval demonstrates the wait; in others the run is final at the first poll.
        self.emulator.run_seconds = 0.3 if "poll_interval" in text else 0.0
        if re.search(r"\bDAG\(|^@dag\b", text, re.MULTILINE):
            return self._dag(snippet, text)
        scope = self.scope | self.dags
        with self._capture_output():
            exec(compile(text, str(snippet), "exec"), scope)  # noqa: S102  # the page's code
            for name, test in list(scope.items()):
                if name.startswith("test_"):
                    self.emulator.reset()
                    test(self.emulator)
                    del scope[name]
        self.scope = scope
        return None

    def _dag(self, snippet: Snippet, text: str) -> None:
        # One file for each page: the next block replaces it.
        path = self.dags_folder / f"{snippet.page.stem}.py"
        path.write_text(text)
        dags = load_dags(path)
        assert dags, "the block has no DAG"
        self.dags.update(dags)
        if snippet.directive == "parsed only":
            return
        for dag in dags.values():
            self.result = run_dag(dag)
            assert self.result.state == "success", self.result.log

    def _compare_with_result(self, expected: dict[str, Any]) -> None:
        """Compare a dict on the page with the result of the previous DAG: the same keys, in order."""
        assert self.result is not None
        (returned,) = (xcoms["return_value"] for xcoms in self.result.xcoms.values())
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
        """Run the command after each `$ `, and find the lines below it in its output or log."""
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            self._shell(snippet, command)
            if snippet.directive is None:
                self._expect(expected)

    def _run(self, command: str, argv: list[str]) -> None:
        """Run a command: Airflow's own in this process, any other in a shell."""
        if argv[0] == "export":
            for name, _, value in (word.partition("=") for word in argv[1:]):
                self.monkeypatch.setenv(name, value.replace("~", str(self.folder)))
        elif argv[0] == "airflow":
            with self._capture_output(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of Airflow itself
                arguments = get_parser().parse_args(argv[1:])
                arguments.func(arguments)
        else:
            process = subprocess.run(
                ["/bin/bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False
            )
            self.output = process.stdout + process.stderr
            assert process.returncode == 0, self.output

    def _expect(self, text: str) -> None:
        """Find the lines in the output, in order; `…` matches any text, and ids and numbers may differ."""
        printed = iter([_normalize(line) for line in self.output.splitlines()])
        for line in (_normalize(line) for line in text.splitlines() if line.strip(" …")):
            pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
            assert any(pattern.search(printed_line) for printed_line in printed), (
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
    for extra in (match[1] for word in argv[2:] if (match := re.fullmatch(r"\.\[(.*)\]", word))):
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
    """Check the names in a command without running it: a target, an extra, a module's arguments."""
    if argv[0] == "python3.11":
        argv = ["python", *argv[1:]]
    if argv[0] in COMMAND_CHECKS:
        COMMAND_CHECKS[argv[0]](argv)
    else:
        assert argv[0] in {"git", "cd", "source", ".", "pytest"}, f"no check for {argv[0]}"
