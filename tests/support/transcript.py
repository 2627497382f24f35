"""Runs the commands on a page of docs/ and renders the page with their current output.

`python -m tests.support.transcript docs/cli.md` updates the page; tests/docs/test_docs_cli.py compares it.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

ADDRESS = "http://127.0.0.1:8084"  # of the emulator, on the page
SAMPLE = Path(__file__).parents[2] / "airflow_provider_flows/emulator/graphs/clibnwpno000bmc0k9hvv3y7f.json"
ITEMS = """\
{"key": "stool", "inputs": "A stool"}
{"key": "sofa", "inputs": "A sofa"}
{"key": "bench", "inputs": "A bench", "parameters": {"quality": "high"}}
"""
HOME = "/home/you"  # the working folder of the commands, on the page
CONSOLE_BLOCK = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
IDS = re.compile(r"\b[0-9a-f]{24}(?:[0-9a-f]{8})?\b")
# The number of these lines differs in each run.
PROGRESS_LINES = re.compile(r"^.* is (starting|running|at \d+% after .*)\n", re.MULTILINE)
VARYING_PATTERNS = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*\+00:00": "TIME",
    r"(started_at\W+)(null|None|'?TIME'?)": r"\1TIME",
    r"(?<=poll it was )'\w+' at \d+%": "STATE",
    r"\.\.\.[0-9a-f]{6} ": "...ID ",
    r"\b[0-9a-f]{64}\b": "SHA256",
    r"(size\W+)\d+": r"\1SIZE",
    r"(progress\W+)[\d.]+": r"\1PART",
    r"(duration\W+|after )[\d.]+": r"\1SECONDS",
    r" {2,}": " ",
    r"={2,}": "==",
    r" +$": "",
}


def normalize(page: str) -> str:
    """Replace what differs in each run by placeholders: ids by numbers, times and sizes by words."""
    names: dict[str, str] = {}
    page = PROGRESS_LINES.sub("", page)
    page = IDS.sub(lambda match: names.setdefault(match[0], f"ID{len(names)}"), page)
    for pattern, placeholder in VARYING_PATTERNS.items():
        page = re.sub(pattern, placeholder, page, flags=re.MULTILINE)
    return page


class PageReplay:
    """One run of the commands of a page, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._url = ""
        self._code = 0
        self._current_ids: dict[str, str] = {}  # maps ids on the page to those of this run
        self._emulator: subprocess.Popen[str] | None = None

    def render(self, page: str) -> str:
        """Return the page with the current output of its commands."""
        try:
            with chdir(self._folder):
                return CONSOLE_BLOCK.sub(lambda match: "".join(self._replay_block(match[0])), page)
        finally:
            if self._emulator is not None:
                self._emulator.terminate()
                self._emulator.communicate()

    def _replay_block(self, block: str) -> Iterator[str]:
        for part in re.split(r"^(?=\$ )", block, flags=re.MULTILINE)[1:]:
            line, _, previous = part.partition("\n")
            line = IDS.sub(lambda match: self._current_ids.get(match[0], match[0]), line)
            output = self._normalize_output(self._run(line.removeprefix("$ ")))
            id_pairs = zip(
                IDS.findall(PROGRESS_LINES.sub("", previous)),
                IDS.findall(PROGRESS_LINES.sub("", output)),
                strict=False,
            )
            self._current_ids = dict(id_pairs) | self._current_ids
            yield f"{line}\n{output}"

    def _normalize_output(self, output: str) -> str:
        output = output.replace(self._url or ADDRESS, ADDRESS).replace(str(self._folder), HOME)
        return "".join(f"{line.rstrip()}\n" for line in output.splitlines() if line.strip())

    def _run(self, line: str) -> str:
        if line == "echo $?":
            return str(self._code)
        if line.startswith("export "):
            name, _, value = shlex.split(line)[1].partition("=")
            os.environ[name] = value.replace(ADDRESS, self._url)
            return ""
        if line.endswith(" &"):
            return self._start(shlex.split(line)[1:-1])
        if not line.startswith("airflow "):
            return subprocess.run(shlex.split(line), capture_output=True, text=True, check=True).stdout
        from tests.support.commands import call

        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            self._code = call(shlex.split(line)[1:])
        return output.getvalue()

    def _start(self, args: list[str]) -> str:
        """Start the emulator on a free port and return its lines: the address and three connections."""
        command = [sys.executable, "-m", "airflow", *args, "--port", "0"]
        self._emulator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._emulator.stdout is not None
        lines = "".join(self._emulator.stdout.readline() for _ in range(4))
        self._url = lines.partition(" emulated at ")[2].partition(" ")[0]
        return lines


@contextmanager
def short_folder() -> Iterator[Path]:
    """Create a folder with a short name (tables have a limited width), a sample graph and sample items."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(SAMPLE, Path(folder) / "sample.json")
        (Path(folder) / "items.jsonl").write_text(ITEMS)
        yield Path(folder).resolve()


if __name__ == "__main__":
    import tests.conftest  # noqa: F401  # sets up a temporary Airflow before Airflow is imported

    target = Path(sys.argv[1]).resolve()
    with short_folder() as own:
        target.write_text(PageReplay(own).render(target.read_text()))
