"""Tests of what is shown of the texts with which a service explains an error: short, and without inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowError
from airflow_provider_flows.core.flow_run import FlowRun, failure_error
from airflow_provider_flows.core.limits import MAX_REASON_LENGTH, MIN_ECHO_LENGTH
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.redaction import INPUT_MASK, NOT_SHOWN, ErrorTexts
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.airflow_run import run_dag
from tests.support.hostile import HostileServer
from tests.support.hostile.echoes import BEFORE, PLACES, PROMPT, SPELLINGS, echo_behaviour, find_echo
from tests.support.modes import OPERATORS, package_log_lines, run_in_mode

OTHER_TEXT = "x" * 150
TEMPLATE = "the flow"
OPTION = "AIRFLOW__FLOWS__LOG_SERVICE_ERRORS"


@contextmanager
def connect_to(name: str, monkeypatch: pytest.MonkeyPatch, conn_type: str = "generio") -> Iterator[FlowsHook]:
    """Yield a hook whose service behaves so at every request."""
    with HostileServer(name) as server:
        connection = {
            "conn_type": conn_type,
            "host": server.url,
            "password": "the-key",
            "extra": {"retries": 0},
        }
        monkeypatch.setenv("AIRFLOW_CONN_HOSTILE", json.dumps(connection))
        yield FlowsHook.get_hook("hostile")


def read_shown_texts(hook: FlowsHook, inputs: Any) -> str:
    """Start a flow run, poll it and list its outputs; return all that a user would see of the responses."""
    texts: list[str] = []

    def add(run: FlowRun) -> None:
        error = str(failure_error(run))
        texts.extend([error, json.dumps(run.to_event(), ensure_ascii=False), run.raw_state, run.error or ""])

    def log(_: int, line: str) -> None:
        texts.append(line)

    try:
        add(hook.start(TEMPLATE, inputs, validate=False))
        add(hook.get_run("r"))
        hook.run(hook.create_wait("r", Schedule.of(1, 1), log).poll_once())
        outputs = hook.list_outputs("r")
        texts.extend(json.dumps(output.to_dict(), ensure_ascii=False) for output in outputs)
    except FlowError as error:
        cause: BaseException | None = error
        while cause is not None:  # as in a traceback
            texts.append(str(cause))
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(texts)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("place", PLACES)
def test_inputs_are_replaced(place: str, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever and however a service repeats the prompt, no message has it; the other text remains."""
    with connect_to(echo_behaviour(place, spelling), monkeypatch) as hook:
        shown = read_shown_texts(hook, PROMPT)

    assert find_echo(shown) is None, shown
    if place != "a gateway's page":  # of which only a title is shown, if it is short
        assert BEFORE in shown
        assert INPUT_MASK in shown or spelling == "after a long text"
    assert "x" * (MAX_REASON_LENGTH + 1) not in shown


FORMS: dict[str, Any] = {
    "a prompt": PROMPT,
    "a list": ["Another prompt", PROMPT],
    "data": [{"data": PROMPT, "additional": {"id": 1}}],
    "an output": [
        {
            "name": "text",
            "asset_id": None,
            "status": "ready",
            "media_type": "text/plain",
            "additional": None,
            "value": PROMPT,
        }
    ],
}
FORMS["a run"] = {"flow_run_id": "r0", "outputs": FORMS["an output"]}
VARIABLES: dict[str, Any] = {
    "a variable": {"item": PROMPT},
    "data of a variable": {"item": {"data": PROMPT}},
    "an output as a variable": {"item": FORMS["an output"][0]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_inputs_is_replaced(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is recognized in every form in which a task accepts inputs."""
    with connect_to(echo_behaviour("a rejection", "as JSON"), monkeypatch) as hook:
        shown = read_shown_texts(hook, FORMS[form])

    assert find_echo(shown) is None, shown
    assert f"{BEFORE} " in shown


@pytest.mark.parametrize("form", VARIABLES)
def test_every_form_of_variables_is_replaced(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is recognized in every form in which PromptChainer accepts variables."""
    with connect_to(echo_behaviour("a rejection", "as JSON"), monkeypatch, "promptchainer") as hook:
        shown = read_shown_texts(hook, VARIABLES[form])

    assert find_echo(shown) is None, shown
    assert f"{BEFORE} " in shown


def test_text_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt from a text file is recognized as well."""
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT, encoding="utf-8")
    with connect_to(echo_behaviour("a rejection", "as it is"), monkeypatch, "promptchainer") as hook:
        shown = read_shown_texts(hook, {"item": {"uri": f"file://{path}"}})

    assert find_echo(shown) is None, shown


def test_only_parts_of_some_length_are_replaced() -> None:
    """A part of 12 characters is replaced, a shorter one only if it is an entire input, and no other text."""
    texts = ErrorTexts({"item": "A wooden chair", "color": "teal", "size": "XL"})

    assert texts.quote("not 'wooden chair'") == "not '[input]'"
    assert len("ooden chair") == MIN_ECHO_LENGTH - 1
    assert texts.quote("not 'ooden chair'") == "not 'ooden chair'"
    assert texts.quote("Teal, steal, teal-XL") == "[input], steal, [input]-XL"
    assert ErrorTexts().quote("any <text> with 100% and \\n") == "any <text> with 100% and \\n"


def test_long_reasons_are_cut() -> None:
    """A reason has at most 200 characters, with an ellipsis if it is cut, whatever of it was replaced."""
    assert ErrorTexts().quote("y" * 200) == "y" * 200
    assert ErrorTexts().quote("y" * 201) == "y" * 197 + "..."
    assert (
        ErrorTexts(["A wooden chair"]).quote("A wooden chair" * 20 + OTHER_TEXT)
        == "[input]" * 20 + "x" * 57 + "..."
    )


@pytest.mark.parametrize("place", PLACES)
def test_option_leaves_out_texts_of_the_service(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `log_service_errors = False` nothing of the service's text is shown, and a message says so."""
    monkeypatch.setenv(OPTION, "False")
    with connect_to(echo_behaviour(place, "as it is"), monkeypatch) as hook:
        shown = read_shown_texts(hook, PROMPT)

    assert find_echo(shown) is None
    if place != "an unknown state":  # a state is no explanation
        assert BEFORE not in shown
        assert NOT_SHOWN in shown or "JSON" in shown or "no flow_id" in shown


def test_own_reasons_are_always_shown(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option leaves out what the service says, not what this package says."""
    monkeypatch.setenv(OPTION, "False")
    emulator.switches.model_failure = "empty"
    hook = FlowsHook.get_hook("promptchainer_default")

    run = hook.start("clibnwpno000bmc0k9hvv3y7f", {"color": "red", "item": "ball"})

    assert run.error == "all outputs are empty or missing"


@pytest.mark.emulator(run_seconds=100.0)
@pytest.mark.parametrize("mode", OPERATORS)
def test_task_shows_no_inputs(emulator: Emulator, mode: str) -> None:
    """In both modes of the operator a failed run's reason is in log and error without the prompt."""
    emulator.add_plan(Plan(outcome="failed", error=f"{BEFORE} {PROMPT}."))

    wait = run_in_mode(mode, emulator, (200.0,), inputs=PROMPT)

    assert f"{BEFORE} {INPUT_MASK}" in str(wait.error)
    assert find_echo(str(wait.error)) is None
    assert find_echo("\n".join(package_log_lines(wait.result.log))) is None


def test_rejected_task_shows_no_inputs(emulator: Emulator) -> None:
    """The error of a rejected start, which is also in the log, does not have the prompt."""
    body = json.dumps({"detail": f"{BEFORE} {json.dumps(PROMPT)}"}).encode()
    emulator.add_fault(Fault(method="POST", path="/flows", times=None, status=422, body=body))
    with DAG("rejected_without_inputs", schedule=None) as dag:
        RunFlowOperator(task_id="run", flow="model_generate_fromprompt", inputs=PROMPT)

    result = run_dag(dag)

    assert f'{BEFORE} "{INPUT_MASK}"' in str(result.errors["run"])
    assert find_echo(str(result.errors["run"])) is None
