"""Tests that every section and ambiguity that the project cites exists in docs/reference/vendor_notes.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTES = (ROOT / "docs" / "reference" / "vendor_notes.md").read_text()
FOLDERS = ("airflow_provider_flows", "benchmarks", "docs", "example_dags", "tests", "tools")
SUFFIXES = {".py", ".md", ".html", ".js"}
AMBIGUITY = re.compile(r"\b[GP]-\d\d\b")
SECTION = re.compile(r"vendor_notes\.md, (\d+\.\d+)(?:(?:\.|, item )(\d+))?")


def iter_files() -> Iterator[Path]:
    """Yield the files that may cite the notes."""
    yield from (ROOT / "README.md", ROOT / "CHANGELOG.md")
    for folder in FOLDERS:
        yield from (
            path
            for path in sorted((ROOT / folder).rglob("*"))
            if path.suffix in SUFFIXES and "_build" not in path.parts
        )


def count_items(section: str) -> int:
    """Return the number of items in the numbered list of a section."""
    text = NOTES.split(f"\n### {section} ")[1].split("\n### ")[0].split("\n## ")[0]
    return len(re.findall(r"^\d+\. ", text, re.MULTILINE))


def test_each_ambiguity_has_a_row() -> None:
    """The table has the 28 ambiguities of Generio and the 14 of PromptChainer, in order and without gaps."""
    assert re.findall(r"^\| ([GP]-\d\d) \|", NOTES, re.MULTILINE) == [
        *(f"G-{number:02}" for number in range(1, 29)),
        *(f"P-{number:02}" for number in range(1, 15)),
    ]


def test_each_cited_ambiguity_exists() -> None:
    """Every id that code, tests or documentation cite is a row of the table."""
    known = set(re.findall(r"^\| ([GP]-\d\d) \|", NOTES, re.MULTILINE))
    unknown = {
        f"{path.relative_to(ROOT)}: {cited}"
        for path in iter_files()
        for cited in AMBIGUITY.findall(path.read_text())
        if cited not in known
    }
    assert not unknown


def test_each_cited_section_exists() -> None:
    """Every `vendor_notes.md, 1.8` names a section, and every `1.12, item 4` an item of its list."""
    sections = set(re.findall(r"^### (\d+\.\d+) ", NOTES, re.MULTILINE))
    unknown = {
        f"{path.relative_to(ROOT)}: {cited[0]}"
        for path in iter_files()
        for cited in SECTION.finditer(path.read_text())
        if cited[1] not in sections or int(cited[2] or 0) > count_items(cited[1])
    }
    assert not unknown
