"""Plays the commands that a page of docs/ shows, and gives the page with what they write now.

`python -m tests.support.transcript docs/cli.md` writes that into the page; tests/docs/test_docs_cli.py compares it.
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

ADDRESS = "http://127.0.0.1:8084"  # of the emulator, as it is shown
SAMPLE = Path(__file__).parents[2] / "airflow_provider_flows/emulator/graphs/clibnwpno000bmc0k9hvv3y7f.json"
HOME = "/home/you"  # the folder that the commands are run in, as it is shown
BLOCK = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
IDS = re.compile(r"\b[0-9a-f]{24}(?:[0-9a-f]{8})?\b")
PASSING = re.compile(
    r"^.* is (starting|running|at \d+% after .*)\n", re.MULTILINE
)  # how many of these there are is chance
CHANCE = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*\+00:00": "TIME",
    r"(started_at\W+)(null|None|'?TIME'?)": r"\1TIME",
    r"(?<=last seen )\w+ at \d+%": "STATE",
    r"\b[0-9a-f]{64}\b": "SHA256",
    r"(size\W+)\d+": r"\1SIZE",
    r"(progress\W+)[\d.]+": r"\1PART",
    r"(duration\W+|after )[\d.]+": r"\1SECONDS",
    r" {2,}": " ",
    r"={2,}": "==",
    r" +$": "",
}


def fixed(page: str) -> str:
    """Take from a page what differs from one play to the next: ids become numbers, times and sizes words."""
    names: dict[str, str] = {}
    page = PASSING.sub("", page)
    page = IDS.sub(lambda found: names.setdefault(found[0], f"ID{len(names)}"), page)
    for pattern, word in CHANCE.items():
        page = re.sub(pattern, word, page, flags=re.MULTILINE)
    return page


class Play:
    """One play of a page, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._url = ""
        self._code = 0
        self._now: dict[str, str] = {}  # ids: as the page has them, and as they are now
        self._emulator: subprocess.Popen[str] | None = None

    def page(self, page: str) -> str:
        """Give the page with what its commands write now."""
        try:
            with chdir(self._folder):
                return BLOCK.sub(lambda found: "".join(self._played(found[0])), page)
        finally:
            if self._emulator is not None:
                self._emulator.terminate()
                self._emulator.communicate()

    def _played(self, block: str) -> Iterator[str]:
        for part in re.split(r"^(?=\$ )", block, flags=re.MULTILINE)[1:]:
            line, _, before = part.partition("\n")
            line = IDS.sub(lambda found: self._now.get(found[0], found[0]), line)
            written = self._shown(self._run(line.removeprefix("$ ")))
            found = zip(
                IDS.findall(PASSING.sub("", before)), IDS.findall(PASSING.sub("", written)), strict=False
            )
            self._now = dict(found) | self._now
            yield f"{line}\n{written}"

    def _shown(self, written: str) -> str:
        written = written.replace(self._url or ADDRESS, ADDRESS).replace(str(self._folder), HOME)
        return "".join(f"{line.rstrip()}\n" for line in written.splitlines() if line.strip())

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

        written = io.StringIO()
        with redirect_stdout(written), redirect_stderr(written):
            self._code = call(shlex.split(line)[1:])
        return written.getvalue()

    def _start(self, words: list[str]) -> str:
        """Start the emulator, at any port that is free."""
        command = [sys.executable, "-m", "airflow", *words, "--port", "0"]
        self._emulator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._emulator.stdout is not None
        line = self._emulator.stdout.readline()
        self._url = line.partition(" emulated at ")[2].partition(";")[0]
        return line


@contextmanager
def short_folder() -> Iterator[Path]:
    """Give a folder with a short name (tables have a width), and in it the flow graph of the vendor's page."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(SAMPLE, Path(folder) / "sample.json")
        yield Path(folder).resolve()


if __name__ == "__main__":
    import tests.conftest  # noqa: F401  # an Airflow of its own, before Airflow is imported

    target = Path(sys.argv[1]).resolve()
    with short_folder() as own:
        target.write_text(Play(own).page(target.read_text()))
