"""Tests that documentation, docstrings, comments and messages use the terms of Airflow, HTTP and asyncio.

The list has phrases that have a better term, not common words: "look up" and "made of wood" are fine.
"""

from __future__ import annotations

import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = r"(?:a|an|the|its|each|every|this|that|single|earlier|one) (?:flow )?runs?"
TERMS = {  # a phrase, and the term to use
    rf"look(?:s|ed|ing)? at {RUN}": "poll",
    r"(?:a|the|each|every|one|first|next|last|single|failed|between) looks?": "poll",
    r"glimpses?|glances?": "poll, list, overview",
    r"(?:an|the|no|its|whose|this|each|every|any) answers?": "response",
    r"answer(?:s|ed|ing)? with|(?:is|was|are|were) answered": "respond with",
    r"(?:go|goes|going|gone|went) on": "continue, resume",
    r"(?:is|are|was|were|be|been|it) told": "notify, log, emit, document",
    r"(?:tell|tells|telling) (?:what|whether|how|which|when|where|of|it|us|nothing|them)": "log, return",
    r"(?:give|gives|gave|given|giving) back": "return",
    r'"""Gives?': "Return",
    r"(?:is|are|was|were|be|been) made(?! (?:of|up))": "create",
    r"(?:makes?|made|making) (?:a|an|the|another) (?:flow )?run": "create",
    r"kept (?:in|by|for|until|beside|there)": "save, store",
    r"(?:is|are) whole|whole (?:file|answer|response|text|body|Airflow)s?": "complete",
    r"(?:takes?|refuses?|refused) (?:the|its|a|your|this) (?:API )?key": "accept, reject",
    r"refuses? (?:what|it|them)|(?<!connection.)(?:is|are|was|were|be) refused": "reject",
    rf"cancel(?:s|led|ling)? (?:of )?(?:{RUN}|flow runs)": "abort",
    r"to the letter": "literally",
    r"asked for (?:again|anew)": "requested again, downloaded again",
    r"(?:passing|lasting) (?:error|reason|failure)s?": "transient, permanent",
    r"lateness|news is|late news": "detection delay",
    rf"(?:pick|picks|picked|picking) up {RUN}": "resume",
    rf"(?:stop|stops|stopped|stopping) {RUN}": "abort",
    r"a piece at a time": "in chunks",
    r"stands? in [\w/]+\.(?:py|md)|stands? in for": "is in, replaces",
    r"brings? home|brought home": "download, store",
    r"the (?:most|least) often": "shortest, longest interval",
    r"at the (?:most|least)": "at most, at least",
    r"of (?:ours|yours|mine)": "our, your",
    r", for (?:it|they|there|nobody|somebody|whoever|that is|those who)": "because, since",
    r"anew": "again",
    r"(?:is|are|too|so|as) dear": "expensive",
    r"under way": "in progress",
    r"of late": "recently",
    r"whoever": "name the actor: the caller, the task, the service",
    r"(?:somebody|anybody) else": "another system, another user",
    r"nobody (?:of|has|can|is|knows|looks|asks|waits|sees)": "name the actor",
    r"vendor-api": "vendor_notes.md",
}


def compile_phrase(phrase: str) -> re.Pattern[str]:
    """Compile a phrase that matches complete words only, in any case, also across a line break."""
    start = r"(?<![\w-])" if phrase[0].isalnum() or phrase[0] == "(" else ""
    return re.compile(rf"{start}(?:{phrase})(?![\w-])".replace(" ", r"\s+"), re.IGNORECASE)


PATTERNS = [(compile_phrase(phrase), term) for phrase, term in TERMS.items()]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Python 3.12 and later split f-strings into tokens.
PROSE_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
SOURCES = sorted(
    path
    for folder in ("airflow_provider_flows", "example_dags")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".html", ".js"}
)


def markdown_prose(text: str) -> str:
    """Return a page without code blocks and inline code, with the same number of lines."""
    fence = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
    text = fence.sub(lambda match: "\n" * match[0].count("\n"), text)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def python_prose(text: str) -> str:
    """Return the strings and comments of a module, each on its line, without identifiers."""
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in PROSE_TOKENS:
            words = token.string.lstrip("# ") if token.type == tokenize.COMMENT else token.string
            for number, line in enumerate(words.splitlines(), token.start[0]):
                lines[number] = f"{lines.get(number, '')} {line.strip()}"
    return "\n".join(lines.get(number, "") for number in range(1, text.count("\n") + 1))


def get_prose(path: Path) -> str:
    """Return the text of a file that is written for people."""
    text = path.read_text()
    if path.suffix == ".md":
        return markdown_prose(text)
    return python_prose(text) if path.suffix == ".py" else text


def find_phrases(prose: str) -> Iterator[str]:
    """Yield each phrase of the list in a text, with its line and the term to use."""
    for pattern, term in PATTERNS:
        for match in pattern.finditer(prose):
            line = prose.count("\n", 0, match.start()) + 1
            yield f"line {line}: {' '.join(match[0].split())!r}, use: {term}"


def find_continued_sentences(prose: str) -> Iterator[str]:
    """Yield each line that begins within a sentence of the previous line; tables and lists are left out."""
    lines = prose.splitlines()
    for number, (previous, line) in enumerate(itertools.pairwise(lines), start=2):
        if (
            re.match(r"[A-Za-z`]", previous)
            and re.search(r"[\w,;`)]$", previous)
            and re.match(r"[\w`(]", line)
        ):
            yield f"line {number}: {line}"


def file_id(path: Path) -> str:
    """Return the path of a file as its test id."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=file_id)
def test_documentation_uses_the_terms_of_the_field(path: Path) -> None:
    """README, CHANGELOG and the pages of docs/ have none of the phrases."""
    assert not list(find_phrases(get_prose(path)))


@pytest.mark.parametrize("path", SOURCES, ids=file_id)
def test_code_uses_the_terms_of_the_field(path: Path) -> None:
    """Docstrings, comments, messages and HTML of the package and the examples have none of the phrases."""
    assert not list(find_phrases(get_prose(path)))


@pytest.mark.parametrize("path", PAGES, ids=file_id)
def test_pages_have_one_sentence_per_line(path: Path) -> None:
    """A sentence is on one line, so that a change of a sentence is a change of one line."""
    assert not list(find_continued_sentences(get_prose(path)))


def test_a_phrase_is_found_across_lines_and_in_any_case() -> None:
    """A phrase is found across a line break and in capitals, but not in other words."""
    assert list(find_phrases("It polls once at\nthe most.")) == [
        "line 1: 'at the most', use: at most, at least"
    ]
    assert list(find_phrases("Is left, for it is over.")) == ["line 1: ', for it', use: because, since"]
    assert list(find_phrases("x\nUnder way")) == ["line 2: 'Under way', use: in progress"]
    assert not list(find_phrases("The connection was refused."))
    assert not list(find_phrases("look up a flow; it is made of wood; at the mostly idle service"))


def test_code_is_not_checked() -> None:
    """Code on a page and identifiers of a module are not prose."""
    assert markdown_prose("a `the answer` b\n```text\nthe answer\n```\nend") == "a `code` b\n\n\n\nend"
    assert python_prose('anew = 1  # a value\n"""It is\nwhole."""\n') == ' a value\n """It is\n whole."""'
