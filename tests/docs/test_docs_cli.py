"""Tests that docs/cli.md matches `airflow flows`: its commands are run again, its tables compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_provider_flows.cli.parser import Exit, get_commands
from tests.support.transcript import PageReplay, normalize, short_folder
from tests.support.versions import needs

pytestmark = needs("commands of providers")

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_the_page_matches_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command has the output of the page, except for ids, times, sizes and lines about progress."""
    for name in ("FLOWS_DEFAULT", "PROMPTCHAINER_DEFAULT"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", "")  # removes the variables that the page sets
    with short_folder() as folder:
        assert normalize(PageReplay(folder).render(PAGE)) == normalize(PAGE)


def test_every_command_is_shown() -> None:
    """The page has each command of the group at least once."""
    (group,) = get_commands()
    documented = set(re.findall(r"^\$ airflow flows (\w+)", PAGE, re.MULTILINE))
    assert documented == {command.name for command in group.subcommands}


def test_the_exit_codes_match_the_code() -> None:
    """The table of exit codes matches the code."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [(str(code.value), code.meaning) for code in Exit]
