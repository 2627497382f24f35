"""Tests of the bound of what a task returns: it holds for the whole dict, and no text is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, OutputOptions
from airflow_provider_flows.storage.outputs import fetch_outputs

pytestmark = pytest.mark.usefixtures("flow_emulator")
TEXTS = {
    "one long text": ["x" * 100_000],
    "20 texts of 40 kB": [f"{number:02}" * 20_000 for number in range(20)],
    "many short ones": ["y" * 1_000 for _ in range(100)],
    "not ASCII": ["\u5186" * 9_000, "\U0001f600" * 5_000],
    "quotes": ['"\\\n' * 12_000],
    "short and long": ["short", "x" * 60_000, "also short"],
    "within the bound": ["a", "b" * 10_000, "c" * 20_000],
}
METADATA: dict[str, Any] = {"none": None, "some": {"note": "n" * 500}, "large": {"note": "n" * 60_000}}


def create_outputs(texts: list[str], metadata: Any) -> tuple[FlowOutput, ...]:
    """Return outputs with these texts."""
    return tuple(
        FlowOutput(f"text {number}", f"a{number}", media_type="text/plain", value=text, additional=metadata)
        for number, text in enumerate(texts)
    )


@pytest.mark.parametrize("metadata", METADATA)
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("has_path", [False, True])
def test_the_bound_holds_for_all_that_a_task_returns(
    tmp_path: Path, name: str, metadata: str, *, has_path: bool
) -> None:
    """Each text is complete, or a complete file, or its start says how to get it from the service."""
    texts = TEXTS[name]
    options = OutputOptions(str(tmp_path) if has_path else None)
    given = FlowRun("r1", "generio", "flow", outputs=create_outputs(texts, METADATA[metadata]))
    run, error = fetch_outputs(GenerioHook("generio_default"), given, options)
    assert error is None
    bound = MAX_XCOM_BYTES if len(texts) < 100 else MAX_XCOM_BYTES + 100 * 600  # names alone take much
    assert len(json.dumps(run.to_dict())) <= bound
    for text, output in zip(texts, run.outputs, strict=True):
        assert output.value is not None
        assert text.startswith(output.value)
        if output.uri is not None:
            assert Path(output.uri.removeprefix("file://")).read_text() == text
        elif output.value != text:
            assert not has_path
            assert "airflow flows download r1" in str(output.warning)
        else:
            assert output.warning is None
    assert (name, run.outputs[0].value) != ("within the bound", "")


def test_short_texts_have_precedence() -> None:
    """A long text does not displace the short ones."""
    outputs = create_outputs(TEXTS["short and long"], None)
    run, _ = fetch_outputs(
        GenerioHook("generio_default"), FlowRun("r1", "generio", outputs=outputs), OutputOptions()
    )
    assert [output.warning is None for output in run.outputs] == [True, False, True]
    assert len(str(run.outputs[1].value)) > 40_000


def test_a_text_that_its_service_cannot_return_is_never_cut(caplog: pytest.LogCaptureFixture) -> None:
    """PromptChainer responds once: without output_path its texts are complete, with a warning."""
    outputs = create_outputs(TEXTS["20 texts of 40 kB"], None)
    given = FlowRun("r1", "promptchainer", "flow", outputs=outputs)
    run, _ = fetch_outputs(PromptChainerHook("promptchainer_default"), given, OutputOptions())
    assert [output.value for output in run.outputs] == TEXTS["20 texts of 40 kB"]
    assert "Set output_path" in caplog.text


def test_no_bound_leaves_every_text_complete() -> None:
    """With None all texts are returned."""
    outputs = create_outputs(TEXTS["20 texts of 40 kB"], None)
    run, _ = fetch_outputs(
        GenerioHook("generio_default"),
        FlowRun("r1", "generio", outputs=outputs),
        OutputOptions(max_xcom_bytes=None),
    )
    assert [output.value for output in run.outputs] == TEXTS["20 texts of 40 kB"]
