"""Tests of the package that `make build` creates: what a package index shows of it."""

from __future__ import annotations

import os
import re
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import hatchling.build
import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"!?\[[^\[\]]*\]\(([^)]*)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    """Return the package's metadata, as pip and `python -m build` create it."""
    folder = tmp_path_factory.mktemp("metadata")
    previous = Path.cwd()
    os.chdir(ROOT)  # a build backend works in the project's folder
    try:
        name = hatchling.build.prepare_metadata_for_build_wheel(str(folder))
    finally:
        os.chdir(previous)
    return HeaderParser().parsestr((folder / name / "METADATA").read_text(encoding="utf-8"))


def test_the_description_has_no_link_that_leads_nowhere(metadata: Message) -> None:
    """Each link and picture of the description has a complete address; the README has relative ones."""
    description, readme = metadata.get_payload(), (ROOT / "README.md").read_text()
    assert isinstance(description, str)
    assert metadata["Description-Content-Type"] == "text/markdown"
    targets, own = LINK.findall(description), LINK.findall(readme)
    assert [target for target in targets if not target.startswith("https://")] == []
    assert targets == [target for target in own if target.startswith("https://")]
    assert len(targets) < len(own)
    assert "<img" not in description
    assert not re.search(r"\]\((?!https://)|^\[[^\]]+\]: (?!https://)", description, re.MULTILINE)


def test_the_description_keeps_the_readmes_text(metadata: Message) -> None:
    """Only pictures and the targets of links are left out; code, tables and headings are the README's."""
    description, readme = metadata.get_payload(), (ROOT / "README.md").read_text()
    assert isinstance(description, str)
    assert CODE.findall(description)[: len(CODE.findall(readme))] == CODE.findall(readme)
    for pattern in (r"^#+ .*$", r"^\|"):
        found = re.findall(pattern, description, re.MULTILINE)
        assert found[: len(re.findall(pattern, readme, re.MULTILINE))] == re.findall(
            pattern, readme, re.MULTILINE
        )
    assert "docs/images" not in description


def test_the_description_says_where_the_documentation_is(metadata: Message) -> None:
    """The text names the folder of the pages that the README links to."""
    description = metadata.get_payload()
    assert isinstance(description, str)
    assert "`docs/index.md`" in description
    assert (ROOT / "docs" / "index.md").is_file()
