"""Tests that one error names all problems of a task: files, paths, flow, parameters and metadata."""

from __future__ import annotations

import json
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.validation import Problems, collect_problems
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.task_state import RECORD_KEY
from tests.support.airflow_run import run_dag
from tests.support.modes import FLOW
from tests.support.scripted_transport import request_lines
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, run_with_retries
from tests.support.versions import needs

# each problem: the arguments, parts of its message, and whether it is only found with the definition
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "file": (
        {"inputs": ["A chair", {"uri": "file:///no/such.png"}]},
        ("inputs[1] names a file that cannot be read",),
        False,
    ),
    "inputs": ({"inputs": []}, ("inputs must hold at least one prompt or file",), False),
    "path": (
        {"output_path": "nonsense://box"},
        ("output_path 'nonsense://box' cannot be written to",),
        False,
    ),
    "additional": ({"additional": {"day": date(2026, 1, 1)}}, ("additional cannot be sent as JSON",), False),
    "parameters": (
        {"parameters": {"qualty": "low", "seed": "x"}},
        ("'qualty' is not known (did you mean 'quality'?)", "parameters['seed'] must be of type integer"),
        True,
    ),
    "flow": (
        {"flow": "model_generate_fromprmpt"},
        ("generio has no flow 'model_generate_fromprmpt' (did you mean",),
        True,
    ),
}
MIXED = [
    pair for pair in combinations(WRONG, 2) if pair != ("file", "inputs")
]  # there are some, or there are none

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


def get_messages(dag_id: str, *tasks: dict[str, Any]) -> list[str]:
    """Run tasks with invalid arguments, and return the message of each."""
    with DAG(dag_id, schedule=None) as dag:
        for number, given in enumerate(tasks):
            RunFlowOperator(task_id=f"t{number}", **{**CHAIR_ARGUMENTS, **given})
    errors = run_dag(dag).errors
    assert {type(error) for error in errors.values()} == {FlowInputError}
    return [str(errors[f"t{number}"]) for number in range(len(tasks))]


@pytest.mark.parametrize("validate", [True, False])
def test_any_two_problems_are_reported_together(emulator: Emulator, validate: bool) -> None:
    """One error names any two problems; with validate=False those without a definition; no run is created."""
    mixed = [pair for pair in MIXED if validate or not any(WRONG[one][2] for one in pair)]
    data = get_messages(
        f"findings_{validate}", *({"validate": validate, **WRONG[a][0], **WRONG[b][0]} for a, b in mixed)
    )

    for pair, message in zip(mixed, data, strict=True):
        for name in pair:
            for part in WRONG[name][1]:
                # a flow that is unknown leaves its parameters unchecked
                assert (part in message) is not (name == "parameters" and "flow" in pair), (pair, message)
        assert message.count("No flow run was created.") == 1
        # it is no remedy for what cannot be sent either way
        assert ("validate=False" in message) is (validate and all(WRONG[name][2] for name in pair)), message
    assert set(request_lines(emulator.requests)) == ({"GET /templates"} if validate else set())
    assert (emulator.runs, emulator.started_count) == ({}, 0)


def test_all_problems_are_in_one_error(emulator: Emulator, tmp_path: Path) -> None:
    """One error names a missing file, a wrong type, metadata, path and parameters, with the right indexes."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "b").write_bytes(b"\x00\x01")
    inputs = [tmp_path / "b", "prompt.png", tmp_path / "a.png", {"data": " ", "additional": date(2026, 1, 1)}]
    path = str(tmp_path / "b" / "x")
    given = {
        "inputs": inputs,
        "parameters": {"seed": "x"},
        "output_path": path,
        "additional": date(2026, 1, 1),
    }
    (data,) = get_messages("findings_all", given)

    for part in (
        "inputs[0] names a file of an unknown type",
        "inputs[1] is a string that looks like a path",
        "inputs[2] must be text/plain, not image/png",
        "inputs[3]['additional'] cannot be sent as JSON",
        "inputs[3] is blank",
        "additional cannot be sent as JSON",
        "parameters['seed'] must be of type integer, not 'x'",
        "cannot be written to",
        f"The request does not match the generio flow {FLOW}: ",
    ):
        assert part in data
    assert emulator.runs == {}


def test_all_problems_of_a_chain_are_in_one_error(emulator: Emulator, tmp_path: Path) -> None:
    """For PromptChainer: unreadable and missing variables, parameters, and a run that cannot be deleted."""
    given: dict[str, Any] = {
        **CHAIN_ARGUMENTS,
        "inputs": {"colour": {"uri": str(tmp_path / "none.txt")}, "item": ["a"]},
        "parameters": {"quality": "low"},
        "output_path": str(tmp_path),
        "delete_after_fetch": True,
    }
    known = (
        "inputs['colour'] names a file that cannot be read",
        "inputs['item'] must be text, a number or a Boolean, not list",
        "parameter 'quality' is not known: a PromptChainer flow has variables only; put them into inputs",
        "delete_after_fetch=True is not supported by promptchainer",
    )
    checked, unchecked = get_messages("findings_chain", given, {**given, "validate": False})

    for part in (*known, "variable 'colour' is not known (did you mean 'color'?)"):
        assert checked.count(part) == 1
    for part in known:
        assert unchecked.count(part) == 1
    assert "is missing" not in unchecked
    assert (emulator.started_count, {request.method for request in emulator.requests}) == (0, {"GET"})


def test_hook_reports_all_problems(emulator: Emulator) -> None:
    """`hook.start` raises one error for unreadable and invalid arguments, also with validate=False."""
    wrong: dict[str, Any] = {
        "inputs": [Path("/no/such.png"), 42],
        "parameters": {"qualty": 1},
        "additional": {1},
    }
    with pytest.raises(FlowInputError) as checked:
        GenerioHook("generio_default").start(FLOW, **wrong)
    with pytest.raises(FlowInputError) as unchecked:
        GenerioHook("generio_default").start(" ", **wrong, validate=False)
    with pytest.raises(FlowInputError) as chain:
        PromptChainerHook("promptchainer_default").start(
            CHAIN_ARGUMENTS["flow"], ["red"], {"a": 1}, validate=False
        )

    for part in (
        "inputs[0] names a file",
        "inputs[1] must be a prompt",
        "additional cannot",
        "'qualty' is not known",
    ):
        assert part in str(checked.value)
    for part in (
        "flow must be the name or id",
        "inputs[0] names a file",
        "inputs[1] must be a prompt",
        "additional cannot",
    ):
        assert part in str(unchecked.value)
    for part in ("inputs must be a mapping of variable names", "parameter 'a' is not known"):
        assert part in str(chain.value)
    assert request_lines(emulator.requests) == ["GET /templates"]


def test_other_arguments_are_validated_beside_a_run_without_outputs(emulator: Emulator) -> None:
    """Where it cannot be known how many inputs there are, their number is not checked, and all else is."""
    empty = {"flow_run_id": "r", "outputs": [], "state": "failed"}
    (data,) = get_messages("findings_count", {"inputs": empty, "parameters": {"seed": "x"}})
    assert "inputs[0]: flow run r (failed) produced no outputs" in data
    assert "parameters['seed'] must be of type integer" in data
    assert "at least" not in data
    assert emulator.runs == {}


def test_problems_are_reported_without_a_definition(emulator: Emulator) -> None:
    """If the definition is not available, all problems that do not depend on it are in one error."""
    emulator.switches.templates_endpoint = 404
    (data,) = get_messages(
        "findings_untold", {**WRONG["file"][0], **WRONG["path"][0], "parameters": {"qualty": 1}}
    )
    for part in (*WRONG["file"][1], *WRONG["path"][1]):
        assert part in data
    assert "qualty" not in data


def test_unreadable_graph_is_one_of_the_problems(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unreadable graph is reported together with the problems that need no graph."""
    (tmp_path / "broken.json").write_text("{}")
    data = json.loads(emulator.connections["AIRFLOW_CONN_PROMPTCHAINER_DEFAULT"])
    monkeypatch.setenv(
        "AIRFLOW_CONN_PROMPTCHAINER_DEFAULT", json.dumps({**data, "extra": {"graphs": tmp_path.as_uri()}})
    )
    given = {**CHAIN_ARGUMENTS, "flow": "broken", "parameters": {"a": 1}, "output_path": "nonsense://b"}
    (message,) = get_messages("findings_graph", given)
    for part in (
        "broken.json (field graphs of connection 'promptchainer_default')",
        "'a' is not known",
        "'nonsense://b' cannot be written",
    ):
        assert part in message


@needs("retry policies")
def test_permanent_problems_are_not_retried(emulator: Emulator) -> None:
    """An error of several problems ends the task at its first try, and no record is saved."""
    ended = run_with_retries("findings_retry", **{**CHAIR_ARGUMENTS, **WRONG["file"][0], **WRONG["path"][0]})
    assert (ended.tries, ended.record) == (1, None)
    assert emulator.runs == {}
    assert RECORD_KEY not in ended.result.xcoms.get("run", {})


def test_problems_are_reported_once_and_permanent_if_one_is() -> None:
    """A repeated problem is reported once; the error is retried only if none of its problems is permanent."""
    found = Problems()
    found.raise_if_any()
    with found.collect():
        raise FlowInputError("b went away.", is_permanent=False)
    assert not found.error().is_permanent
    found.add("a is wrong", "a is wrong", invalidates="a")
    error = found.error("Nothing was sent.")
    assert (str(error), error.is_permanent, found.invalid) == (
        "b went away; a is wrong. Nothing was sent.",
        True,
        {"a"},
    )
    with pytest.raises(FlowInputError, match=r"^c\.$"), collect_problems(None) as own:
        own.add("c")
    with collect_problems(found) as same:
        same.add("c")
    assert len(found) == 3
