"""Tests of `ImageCheck`, `TextCheck` and functions: what each one rejects, and how it names that."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_flows.checks import CheckedOutput, GlbCheck, ImageCheck, TextCheck
from airflow_provider_flows.checks.definitions import to_checks, validate_rejection
from airflow_provider_flows.checks.files import check_outputs
from airflow_provider_flows.checks.requirements import find_missing_requirements
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.limits import MAX_CHECKED_TEXT_BYTES, MAX_VERDICT_LENGTH
from airflow_provider_flows.core.payload.picture_size import read_picture_size
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import (
    MAX_OUTPUT_VERDICT_BYTES,
    MAX_RUN_VERDICT_BYTES,
    get_json_size,
)

SCHEMA = {
    "type": "object",
    "properties": {"price": {"type": "integer", "minimum": 1}},
    "required": ["price"],
}


def store(folder: Path, name: str, data: bytes, media_type: str | None) -> FlowOutput:
    """Store a file as a task does, and return its output."""
    path = folder / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return FlowOutput(name, media_type=media_type, uri=path.as_uri(), size=len(data))


def check(folder: Path, checks: Any, *outputs: FlowOutput) -> dict[str, Any]:
    """Check outputs as a task does, and return the verdict of the run."""
    run = FlowRun("run", "generio", state=FlowState.COMPLETED, outputs=outputs)
    checked = check_outputs(run, OutputOptions(str(folder), check_outputs=checks))
    return dict(checked.verdict or {})


def create_picture(kind: str, width: int = 30, height: int = 20) -> bytes:
    """Return a picture of a format of Pillow's."""
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_size_of_a_picture_is_read_from_its_header(tmp_path: Path, kind: str) -> None:
    """Each format has its width and height, and no format is mixed up."""
    output = store(tmp_path, "picture", create_picture(kind), f"image/{kind.lower()}")
    fits = ImageCheck(min_width=30, max_width=30, min_height=20, max_height=20)
    assert check(tmp_path, fits, output) == {"accepted": True, "problems": []}
    small = ImageCheck(min_width=31, max_height=19, max_bytes=10)
    assert check(tmp_path, small, output)["problems"] == [
        "picture is 20 pixels high, more than max_height (19)",
        f"picture has {output.size:,} bytes, more than max_bytes (10)",
        "picture is 30 pixels wide, less than min_width (31)",
    ]


@pytest.mark.parametrize("mode", ["lossless", "transparent"])
def test_other_forms_of_webp_have_a_size(mode: str) -> None:
    """WebP has three kinds of headers."""
    buffer = io.BytesIO()
    picture = Image.new("RGBA" if mode == "transparent" else "RGB", (33, 21), "red")
    picture.save(buffer, "WEBP", lossless=mode == "lossless", exif=b"Exif\0\0" if mode != "lossless" else b"")
    data = buffer.getvalue()
    size = read_picture_size(lambda offset, count: data[offset : offset + count])
    assert size is not None
    assert (size.width, size.height) == (33, 21)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_truncated_picture_is_rejected(tmp_path: Path, kind: str) -> None:
    """A picture that ends before its own structure does is named as such."""
    output = store(tmp_path, "p", create_picture(kind, 200, 200)[:-600], f"image/{kind.lower()}")
    (problem,) = check(tmp_path, ImageCheck(), output)["problems"]
    assert "is truncated: its" in problem


def test_file_that_is_no_picture_is_rejected(tmp_path: Path) -> None:
    """A page of a proxy that was declared as a picture is none."""
    output = store(tmp_path, "p", b"<html>busy</html>", "image/png")
    assert check(tmp_path, ImageCheck(), output)["problems"] == ["p is no picture whose size can be read"]


TEXTS = [
    pytest.param(
        {"max_characters": 5}, "123456", "has 6 characters, more than max_characters (5)", id="long"
    ),
    pytest.param(
        {"matches": "^Once"}, "Twice upon a time", "does not match the regular expression", id="regex"
    ),
    pytest.param({"json_schema": SCHEMA}, "no JSON", "is no JSON, which json_schema needs", id="no JSON"),
    pytest.param(
        {"json_schema": SCHEMA},
        '{"price": "secret"}',
        "does not match json_schema at $.price (type: 'integer')",
        id="schema",
    ),
    pytest.param({"json_schema": SCHEMA}, "{}", "does not match json_schema at $ (required:", id="missing"),
    pytest.param(
        {"json_schema": {"$ref": "http://127.0.0.1:9/schema.json"}},
        "{}",
        "cannot be compared with json_schema, which refers to 'http://127.0.0.1:9/schema.json'",
        id="reference",
    ),
    pytest.param({"json_schema": SCHEMA}, "[" * 5000 + "]" * 5000, "is no JSON", id="deep"),
]


@pytest.mark.parametrize(("arguments", "text", "expected"), TEXTS)
@pytest.mark.parametrize("is_stored", [False, True])
def test_unwanted_text_is_rejected_and_named(
    tmp_path: Path, arguments: dict[str, Any], text: str, expected: str, is_stored: bool
) -> None:
    """Each argument rejects a text in the result or in a file, and no message quotes the text."""
    output = FlowOutput("t", media_type="text/plain", value=text)
    if is_stored:
        output = store(tmp_path, "t", text.encode(), "text/plain")
    (problem,) = check(tmp_path, TextCheck(**arguments), output)["problems"]
    assert expected in problem
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_characters": 6, "matches": "4"}, "123456"),
        ({"matches": re.compile("once", re.IGNORECASE)}, "ONCE"),
        ({"json_schema": SCHEMA}, '{"price": 3}'),
        ({"json_schema": {"$defs": {"n": {"type": "null"}}, "$ref": "#/$defs/n"}}, "null"),
    ],
)
def test_text_within_all_bounds_is_accepted(tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    """A text that satisfies its check passes."""
    assert check(tmp_path, TextCheck(**arguments), FlowOutput("t", value=text))["accepted"]


def test_text_that_is_not_complete_is_an_error_of_the_task(tmp_path: Path) -> None:
    """A text of which only the start is in the result is not rejected, which would pay for another run."""
    cut = FlowOutput("t", value="The start", warning="Only the start of this text was returned")
    with pytest.raises(FlowInputError, match="Set output_path"):
        check(tmp_path, TextCheck(), cut)


def test_text_without_bounds_is_rejected(tmp_path: Path) -> None:
    """A text that is larger than what is read is not accepted."""
    large = store(tmp_path, "t", b"x" * (MAX_CHECKED_TEXT_BYTES + 1), "text/plain")
    assert "is too large to be checked" in check(tmp_path, TextCheck(), large)["problems"][0]


def test_verdicts_of_a_thousand_outputs_are_small(tmp_path: Path) -> None:
    """Each output has its verdict, and the verdicts of all fit into what is reserved for them in XCom."""
    outputs = [FlowOutput(f"t{number}", value="no") for number in range(1000)]
    run = FlowRun("r", "generio", outputs=tuple(outputs))
    checks = [lambda _: ["a" * 1000, "b" * 1000], TextCheck(matches="x")]
    checked = check_outputs(run, OutputOptions(str(tmp_path), check_outputs=checks))
    verdicts = [output.verdict for output in checked.outputs]
    assert all(verdict and not verdict["accepted"] and verdict["problems"] for verdict in verdicts)
    assert get_json_size(verdicts) < len(outputs) * MAX_OUTPUT_VERDICT_BYTES + MAX_RUN_VERDICT_BYTES
    assert get_json_size(checked.verdict) < MAX_RUN_VERDICT_BYTES


def test_function_gets_the_output_and_returns_its_problems(tmp_path: Path) -> None:
    """A function sees name, type, size, text and file of each output, and what it returns is the verdict."""
    seen = []

    def is_welcome(output: CheckedOutput) -> Any:
        content = None
        if output.uri is not None:
            with output.open() as file:
                content = file.read()
        seen.append((output.name, output.media_type, output.size, output.text, content))
        return {"a": None, "b": True, "c": False, "d": "is late", "e": ["is x", "is y"]}[output.name]

    picture = store(tmp_path, "a", create_picture("PNG"), "image/png")
    texts = [FlowOutput(name, value=f"text {name}") for name in "bcde"]
    verdict = check(tmp_path, is_welcome, picture, *texts)
    assert verdict["problems"] == ["c is rejected by is_welcome", "d is late", "e is x", "e is y"]
    assert seen[0] == ("a", "image/png", picture.size, None, create_picture_content(tmp_path))
    assert seen[1] == ("b", None, None, "text b", None)


def create_picture_content(folder: Path) -> bytes:
    """Return the content of the stored picture."""
    return (folder / "run" / "a").read_bytes()


def test_problem_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    """What a function returns can go into a log, an XCom and a page."""

    def is_odd(_: CheckedOutput) -> str:
        return "is odd\r\n\x1b[2J\0" + "x" * 5000

    (problem,) = check(tmp_path, is_odd, FlowOutput("t", value="text"))["problems"]
    assert problem.isprintable()
    assert len(problem) <= MAX_VERDICT_LENGTH + 20


def test_function_that_returns_something_else_is_an_error(tmp_path: Path) -> None:
    """A number is no verdict."""
    with pytest.raises(FlowInputError, match="must return None, True or False, a text or a list of texts"):
        check(tmp_path, lambda _: 5, FlowOutput("t", value="text"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (GlbCheck, r"not a class; write GlbCheck\(\.\.\.\)"),
        ([], "check_outputs is empty"),
        ("glb", "must be a GlbCheck, an ImageCheck, a TextCheck"),
        ([GlbCheck(), None], "not None"),
        (True, "not True"),
    ],
)
def test_invalid_checks_are_named(value: Any, expected: str) -> None:
    """What is no check is rejected, with what is one."""
    with pytest.raises(FlowInputError, match=expected):
        to_checks(value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((GlbCheck(), "retry", 1), "on_rejected must be 'fail' or 'again', not 'retry'"),
        ((None, "again", 1), "on_rejected='again' needs check_outputs"),
        ((GlbCheck(), "again", 0), "check_retries must be an integer from 1 to 10, not 0"),
        ((GlbCheck(), "again", 11), "check_retries must be"),
        ((GlbCheck(), "again", True), "check_retries must be"),
    ],
)
def test_invalid_consequence_is_named(arguments: tuple[Any, str, int], expected: str) -> None:
    """The arguments about rejected outputs are checked together."""
    with pytest.raises(FlowInputError, match=expected):
        validate_rejection(*arguments)


@pytest.mark.parametrize(
    ("create", "expected"),
    [
        (lambda: ImageCheck(min_width=-1), "ImageCheck: min_width must be a positive integer"),
        (lambda: TextCheck(max_characters=0), "TextCheck: max_characters must be"),
        (lambda: TextCheck(matches="("), "TextCheck: matches must be a regular expression"),
        (lambda: TextCheck(matches=5), "TextCheck: matches must be a regular expression"),
        (lambda: TextCheck(json_schema="{}"), "TextCheck: json_schema must be a dict"),
    ],
)
def test_invalid_argument_of_a_check_is_named(create: Any, expected: str) -> None:
    """A value that makes no sense is rejected when the DAG file is parsed."""
    with pytest.raises(FlowInputError, match=re.escape(expected)):
        create()


def test_invalid_schema_is_named_before_a_run_is_started() -> None:
    """A worker finds a schema that is none."""
    (problem,) = find_missing_requirements([TextCheck(json_schema={"type": "number of chairs"})])
    assert problem.startswith("TextCheck: json_schema is not a valid JSON Schema: 'number of chairs'")
