"""Tests of what the pages show: inputs, links, sizes and durations."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_flows.core.flow_run import FlowOutput
from airflow_provider_flows.plugin import html, present, texts


def test_a_signed_link_is_not_shown() -> None:
    """A signed link grants access to the file; the page only states that there is one."""
    link = "https://x.blob.core.windows.net/a.png?sig=0123456789abcdef0123456789"
    outputs = [FlowOutput("picture", value=link, media_type="image/png")]
    (output,) = present.to_output_schemas(outputs, is_at_service=True)
    assert link not in output.model_dump_json()
    assert output.note
    assert not output.is_downloadable


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("A chair", [("1", "A chair")]),
        ('["A chair", {"data": "A stool"}]', [("1", "A chair"), ("2", "A stool")]),
        ({"color": "red", "api_key": "secret-of-mine"}, [("color", "red"), ("api_key", "***")]),
        ([{"uri": "s3://bucket/a.png"}], [("1", "s3://bucket/a.png")]),
        (["data:image/png;base64,AAAA"], [("1", "data:image/png;base64,… (4 characters)")]),
        (None, []),
    ],
)
def test_inputs_are_shown_in_every_form_that_a_task_accepts(
    inputs: Any, expected: list[tuple[str, str]]
) -> None:
    """Prompts and variables are shown as they are, files by their URI; secrets are redacted."""
    assert [(each.name, each.text) for each in texts.to_input_schemas(inputs)] == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (None, ""),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (35028, "35.0 kB"),
        (999_999, "1000 kB"),
        (5 * 10**9, "5.0 GB"),
    ],
)
def test_sizes_are_formatted(count: int | None, expected: str) -> None:
    """In powers of 1000, as object stores bill them."""
    assert html.format_size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, ""), (0.04, "0.0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3660, "1 h 01 min")],
)
def test_durations_are_formatted(seconds: float | None, expected: str) -> None:
    """In at most two units."""
    assert html.format_duration(seconds) == expected
