"""Tests that a request is validated before a run is created, in DAG runs and by the hook."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError
from airflow_provider_flows.core.flow_run import FlowState
from airflow_provider_flows.core.single_flight import SingleFlightCache
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.emulator.graph import sample_graphs
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.hooks.preflight import DEFINITION_TTL_SECONDS, MAX_DEFINITION_ATTEMPTS, Preflight
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.graph_files import load_graph
from tests.support.airflow_run import DagResult, capture_log, run_dag
from tests.support.modes import FAST_POLLING, FLOW, package_log_lines
from tests.support.scripted_transport import request_lines
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, run_with_retries
from tests.support.versions import needs

INFO = f"GET /api/flows/getFlowInfo/{CHAIN_ARGUMENTS['flow']}"
RUN = f"POST /api/flows/run/{CHAIN_ARGUMENTS['flow']}"
NOT_AVAILABLE = "is not available, so its inputs"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


def list_definition_requests(emulator: Emulator) -> list[str]:
    """Return the requests that are about definitions or begin a run."""
    return [
        name
        for name in request_lines(emulator.requests)
        if name.startswith("POST") or "/templates" in name or "getFlowInfo" in name
    ]


def run_task(dag_id: str, **given: Any) -> DagResult:
    """Run one task to its end."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **{**FAST_POLLING, **given})
    return run_dag(dag)


@needs("retry policies")
@pytest.mark.parametrize("deferrable", [False, True])
def test_all_mismatches_are_reported_and_no_run_is_created(
    emulator: Emulator,
    tmp_path: Path,
    deferrable: bool,
) -> None:
    """A task with wrong parameters and a wrong file fails once, with one error, and is not retried."""
    (tmp_path / "chair.png").write_bytes(PNG)
    ended = run_with_retries(
        f"validation_{deferrable}",
        flow=FLOW,
        inputs=["A chair", tmp_path / "chair.png"],
        parameters={"qualty": "low", "seed": "three", "texture": 1},
        deferrable=deferrable,
    )

    assert type(ended.error) is FlowInputError
    for part in (
        "inputs[1] must be text/plain, not image/png",
        "parameter 'qualty' is not known (did you mean 'quality'?)",
        "parameters['seed'] must be of type integer, not 'three'",
        "parameters['texture'] must be of type boolean, not 1",
        "No flow run was created",
        "validate=False",
    ):
        assert part in str(ended.error)
    assert (ended.tries, ended.record) == (1, None)
    assert list_definition_requests(emulator) == ["GET /templates"]
    assert (emulator.runs, emulator.started_count) == ({}, 0)


def test_unknown_flow_is_rejected_with_the_nearest_name(emulator: Emulator) -> None:
    """A misspelt flow is rejected with the nearest names; a flow is also found by its id (G-26)."""
    error = run_task("validation_flow", **{**CHAIR_ARGUMENTS, "flow": "model_generate_fromprmpt"}).errors[
        "run"
    ]

    assert type(error) is FlowInputError
    assert "no flow 'model_generate_fromprmpt' (did you mean 'model_generate_fromprompt'" in str(error)
    assert (emulator.runs, list_definition_requests(emulator)) == ({}, ["GET /templates"])
    (found,) = [one for one in GenerioHook("generio_default").list_definitions() if one.name == FLOW]
    assert found.flow != FLOW
    assert run_task("validation_id", **{**CHAIR_ARGUMENTS, "flow": found.flow}).state == "success"


def test_name_of_two_flows_is_rejected_with_their_ids(emulator: Emulator, hook: GenerioHook) -> None:
    """A name that two flows have is an error with both ids; an id, or validate=False, starts the flow."""
    rows = [{"id": flow_id, "name": FLOW} for flow_id in ("a1", "b2")]
    rows += [{"id": "c3", "name": "poem"}, {"id": "c3", "name": "poem"}]  # one flow, listed twice
    listed = Fault("GET", "*/templates", times=None, body=json.dumps({"templates": rows}).encode())
    emulator.add_fault(listed)
    message = f"generio has 2 flows named '{FLOW}'; set flow to one of their ids: 'a1' or 'b2'"
    with pytest.raises(FlowInputError) as caught:
        hook.start(FLOW, "A chair")
    assert message in str(caught.value)
    assert "No flow run was created" in str(caught.value)
    with pytest.raises(FlowInputError, match="'a1' or 'b2'"):
        hook.get_definition(FLOW)
    assert emulator.runs == {}

    for flow in ("a1", "b2", "poem"):
        hook.validate(hook.build_request(flow, "A chair", None, None))
    assert hook.start(FLOW, "A chair", validate=False).flow == FLOW


def test_variables_are_validated_before_the_run(emulator: Emulator) -> None:
    """A chain's missing and misspelt variables are one error, and the chain is not run."""
    error = run_task(
        "validation_chain",
        **{**CHAIN_ARGUMENTS, "inputs": {"colour": "red"}, "parameters": {"quality": "low"}},
    ).errors["run"]

    assert type(error) is FlowInputError
    for part in (
        "'item' is missing",
        "'colour' is not known (did you mean 'color'?)",
        "'quality' is not known",
    ):
        assert part in str(error)
    assert (list_definition_requests(emulator), emulator.started_count) == ([INFO], 0)


OTHER_SERVICE: dict[str, tuple[dict[str, Any], str]] = {
    "a prompt for a chain": (
        {**CHAIR_ARGUMENTS, "flows_conn_id": "promptchainer_default"},
        "Connection 'promptchainer_default' (flows_conn_id) has type 'promptchainer', which selects promptc",
    ),
    "an unknown flow": (
        {**CHAIN_ARGUMENTS, "flows_conn_id": "generio_default", "inputs": "A chair"},
        "Connection 'generio_default' (flows_conn_id) has type 'generio', which selects generio; a flow of",
    ),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("case", OTHER_SERVICE)
def test_flow_of_another_service_names_the_connection(
    emulator: Emulator, case: str, *, validate: bool
) -> None:
    """Inputs in the form of another service, or its flow, are an error that names what selected this one."""
    arguments, message = OTHER_SERVICE[case]
    if not validate and case == "an unknown flow":
        message = "of another account or service (flows_conn_id)"
    operator = RunFlowOperator(task_id="t", **{**arguments, **FAST_POLLING, "validate": validate})
    with pytest.raises(FlowError) as caught:
        operator.execute(context(Store()))
    assert message in str(caught.value)
    assert emulator.started_count == 0


@pytest.mark.parametrize(("flow", "works"), [("no-such-flow", False), (CHAIN_ARGUMENTS["flow"], True)])
@pytest.mark.usefixtures("emulator")
def test_wrong_test_flow_is_named_as_in_the_form(
    monkeypatch: pytest.MonkeyPatch, flow: str, *, works: bool
) -> None:
    """The Test button's message about a wrong test flow names that field, and no argument of a DAG."""
    connection = json.loads(os.environ["AIRFLOW_CONN_PROMPTCHAINER_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_TESTED", json.dumps({**connection, "extra": {"test_flow": flow}}))
    is_ok, message = PromptChainerHook("tested").test_connection()
    assert is_ok == works
    if not works:
        assert "PromptChainer has no flow 'no-such-flow' for this API key" in message
        assert "Set the field Test flow to the id of one of your flows" in message
        assert not re.search("flow_run_id|flows_conn_id", message)


def test_missing_folder_of_graphs_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that does not exist is a warning with its name; a file that does not exist is none."""
    assert load_graph(str(tmp_path), "f", "flows_default") is None
    assert caplog.records == []
    assert load_graph(str(tmp_path / "none"), "f", "flows_default") is None
    assert f"The folder {tmp_path / 'none'} of flow graphs does not exist" in caplog.text


def test_validation_can_be_disabled(emulator: Emulator) -> None:
    """With validate=False no definition is requested; the service decides about the arguments."""
    emulator.switches.unknown_parameter = "ignore"
    given: dict[str, Any] = {**CHAIR_ARGUMENTS, "parameters": {"quality": "low", "colour": "red"}}

    assert type(run_task("validation_on", **given).errors["run"]) is FlowInputError
    assert run_task("validation_off", **given, validate=False).state == "success"
    assert list_definition_requests(emulator) == [
        "GET /templates",
        "POST /flows",
        *[name for name in list_definition_requests(emulator) if name.endswith("/inputs")],
    ]
    assert run_task("validation_off_chain", **CHAIN_ARGUMENTS, validate=False).state == "success"
    assert list_definition_requests(emulator)[-1] == RUN
    assert INFO not in list_definition_requests(emulator)


def test_chain_without_validation_and_outputs_has_failed(emulator: Emulator) -> None:
    """A chain without outputs failed if its definition is not known; else the missing outputs are named."""
    emulator.add_graph("pictures", {"nodes": [
        {"id": "i", "type": "imageNode", "data": {"name": "i", "prompt": "a chair"}},
        {"id": "o", "type": "outputNode", "data": {"name": "Picture"}},
    ], "edges": [{"source": "i", "target": "o"}]})  # fmt: skip
    emulator.switches.model_failure = "missing"
    hook = PromptChainerHook("promptchainer_default")

    for validate, names in ((False, []), (True, ["Picture"])):
        run = hook.start("pictures", {}, validate=validate)
        assert (run.state, [output.name for output in run.outputs]) == (FlowState.FAILED, names)


def test_rendered_strings_are_sent_as_the_documented_types(emulator: Emulator) -> None:
    """Templated arguments are strings; a number and a Boolean among them are sent as such."""
    values = {"seed": "{{ 3 + 4 }}", "texture": "{{ False }}", "quality": None}
    assert run_task("validation_templates", **{**CHAIR_ARGUMENTS, "parameters": values}).state == "success"
    (run,) = emulator.runs.values()
    assert run.parameters == {"quality": "high", "seed": 7, "texture": False}


def test_chain_without_variables_needs_no_inputs(emulator: Emulator) -> None:
    """A chain without variables runs without inputs."""
    graph = {"nodes": [{"id": "o", "type": "outputNode", "data": {"name": "Text"}}], "edges": []}
    emulator.add_graph("alone", graph)
    PromptChainerHook("promptchainer_default").start("alone")
    assert [request.json for request in emulator.requests if request.method == "POST"] == [{"variables": {}}]


@needs("task state store")
def test_retry_that_resumes_a_run_validates_nothing(emulator: Emulator) -> None:
    """Only a try that creates a run loads the flow's definition; one that resumes a run does not."""
    emulator.add_fault(Fault(method="GET", path="/flows/*/outputs", status=500))
    ended = run_with_retries("validation_retry", **CHAIR_ARGUMENTS)

    assert ended.state == "success", ended.result.log
    assert ended.tries == 2
    assert list_definition_requests(emulator).count("GET /templates") == 1
    assert emulator.started_count == 1


TROUBLES: dict[str, dict[str, Any]] = {
    "not there": {"switches": {"templates_endpoint": 404}},
    "not allowed": {"switches": {"templates_endpoint": 405}},
    "broken": {"fault": Fault(path="/templates", status=500, times=None)},
    "away": {"fault": Fault(path="/templates", status=503, times=None)},
    "requests a pause": {
        "fault": Fault(path="/templates", status=429, headers={"Retry-After": "600"}, times=None)
    },
    "unreachable": {"fault": Fault(path="/templates", reset="before", times=None)},
    "no JSON": {"fault": Fault(path="/templates", body=b"<html>", times=None)},
    "no list": {"fault": Fault(path="/templates", body=b'{"templates": "soon"}', times=None)},
    "an empty list": {"fault": Fault(path="/templates", body=b'{"templates": []}', times=None)},
    "rejected key": {"fault": Fault(path="/templates", status=403, times=None)},
}


def test_unavailable_definition_is_no_error(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the definition cannot be loaded, the run starts, one line logs it, and no retry takes minutes."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_FLOWS_DEFAULT", emulator.connections["AIRFLOW_CONN_FLOWS_DEFAULT"]
    )  # with its retries
    for number, (name, failure) in enumerate(TROUBLES.items()):
        emulator.reset()
        emulator.switches.update(failure.get("switches", {}))
        if "fault" in failure:
            emulator.add_fault(failure["fault"])
        emulator.run_seconds = 0
        emulator.switches.unknown_parameter = "ignore"
        result = run_task(
            f"validation_trouble_{number}", **{**CHAIR_ARGUMENTS, "parameters": {"colour": "red"}}
        )
        assert result.state == "success", name
        assert sum(NOT_AVAILABLE in line for line in package_log_lines(result.log)) == 1, name
        assert list_definition_requests(emulator).count("GET /templates") <= MAX_DEFINITION_ATTEMPTS, name


def test_definitions_are_shared_by_hooks(emulator: Emulator, hook: GenerioHook) -> None:
    """Many requests of a process load a definition once; another connection loads it for itself."""
    run_request = hook.build_request(FLOW, "A chair", {"quality": "low"}, None)
    hook.validate(run_request)
    hooks = [GenerioHook("flows_default") for _ in range(4)]
    threads = [Thread(target=one.validate, args=(run_request,)) for one in hooks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hook.validate(run_request) == hook.get_definition(FLOW)
    assert list_definition_requests(emulator) == [
        "GET /templates",
        "GET /templates",
    ]  # for the check, and for get_definition
    other = GenerioHook("generio_default")
    other.connection.extra = json.dumps({"retries": 1})
    other.validate(run_request)
    assert len(list_definition_requests(emulator)) == 3


@pytest.mark.parametrize(("status", "expected"), [(None, [1, 1, 1, 2, 2, 3]), (404, [1, 1, 1, 1, 2, 2])])
def test_definitions_are_cached_for_a_minute(
    emulator: Emulator,
    hook: GenerioHook,
    status: int | None,
    expected: list[int],
) -> None:
    """A definition is loaded again after a minute, or for an invalid request; an error after a minute."""
    now = [0.0]
    preflight = Preflight(hook, hook.get_graph, SingleFlightCache(lambda: now[0]), lambda: now[0])
    if status is not None:
        emulator.add_fault(Fault(path="/templates", status=status))
    valid = hook.build_request(FLOW, "A chair", {"quality": "low"}, None)
    invalid = hook.build_request(FLOW, "A chair", {"qualty": "low"}, None)

    def count_requests() -> int:
        preflight.check(invalid if now[0] == 1 else valid)
        return len(list_definition_requests(emulator))

    counts = []
    minute = DEFINITION_TTL_SECONDS
    with capture_log() as lines:
        for seconds in (0, 0, minute - 1, 1, minute, minute + 1):
            now[0] = seconds
            counts.append(count_requests())
    assert counts == expected
    assert sum(NOT_AVAILABLE in line for line in lines) == (status is not None)


def test_threads_load_a_definition_once(emulator: Emulator) -> None:
    """Threads that validate at the same time share one request."""
    emulator.add_fault(Fault(path="/templates", delay=0.5))
    hooks = [GenerioHook("flows_default") for _ in range(4)]
    requests = [hook.build_request(FLOW, "A chair", None, None) for hook in hooks]
    with ThreadPoolExecutor(4) as pool:
        definitions = list(pool.map(lambda hook, request: hook.validate(request), hooks, requests))
    assert {definition and definition.name for definition in definitions} == {FLOW}
    assert list_definition_requests(emulator) == ["GET /templates"]


def test_cache_key_contains_no_secret(hook: GenerioHook) -> None:
    """Another API key is another key in the cache, but the cache shows neither."""
    (value,) = hook.settings.credentials.values()
    keys = [hook.preflight._get_cache_key()]
    hook.connection.password = "another-key"
    keys.append(hook.preflight._get_cache_key())
    assert len(set(keys)) == 2
    assert not any(secret in repr(keys) for secret in (value.split()[-1], "another-key"))


def test_request_is_not_rejected_because_of_a_cached_definition(
    emulator: Emulator, hook: GenerioHook
) -> None:
    """Definitions are loaded again before a new flow or parameter is rejected."""
    emulator.add_fault(
        Fault(path="/templates", body=b'{"templates": [{"name": "model_optimize", "parameters": {}}]}')
    )
    hook.validate(hook.build_request("model_optimize", "A chair", None, None))
    hook.validate(hook.build_request(FLOW, "A chair", {"quality": "low"}, None))
    assert len(list_definition_requests(emulator)) == 2

    for _ in range(2):
        with pytest.raises(FlowInputError, match="no flow 'model_dream'"):
            hook.validate(hook.build_request("model_dream", "A chair", None, None))
    assert len(list_definition_requests(emulator)) == 4


def test_missing_inputs_are_rejected_after_one_request(emulator: Emulator, hook: GenerioHook) -> None:
    """A problem that needs no definition is reported once, with the other problems."""
    for inputs, data in (
        (None, "at least one prompt or file"),
        ([], "at least one"),
        ({"color": "red"}, "mapping of variables"),
    ):
        with pytest.raises(FlowInputError, match=data) as caught:
            hook.start(FLOW, inputs, {"qualty": "low"})
        assert str(caught.value).count("inputs must") == 1
        assert "'qualty' is not known" in str(caught.value)
    assert list_definition_requests(emulator) == ["GET /templates"] * len(emulator.requests)
    assert emulator.runs == {}


@pytest.mark.parametrize(
    ("switch", "value", "data"),
    [
        *(
            ("template_parameters", way, "'seed'] must be of type integer")
            for way in ("list", "mapping", "schema")
        ),
        ("template_parameters", "names", "'colour' is not known"),
        ("template_parameters", "absent", ""),
        *(
            ("template_inputs", way, "inputs[0] must be model/gltf-binary")
            for way in ("strings", "objects", "words")
        ),
        ("template_inputs", "absent", ""),
    ],
)
def test_every_shape_of_a_template_is_validated(
    emulator: Emulator, hook: GenerioHook, switch: str, value: str, data: str
) -> None:
    """Whatever shape the service's templates have, what they state is checked and nothing else."""
    emulator.switches.update({switch: value})
    of_inputs = switch == "template_inputs"
    parameters = None if of_inputs else {"seed": "three"} if "type" in data else {"colour": 1}
    run_request = hook.build_request("model_optimize" if of_inputs else FLOW, "A chair", parameters, None)
    if data:
        with pytest.raises(FlowInputError) as caught:
            hook.validate(run_request)
        assert data in str(caught.value)
    else:
        assert hook.validate(run_request) is not None


def test_bmp_is_validated_as_png(emulator: Emulator, hook: GenerioHook, tmp_path: Path) -> None:
    """A BMP, which no flow takes, is checked as the PNG that is sent (G-11); a TIFF by its content."""
    from PIL import Image

    image = Image.new("RGB", (2, 2))
    image.save(tmp_path / "a.bmp")
    image.save(tmp_path / "b.png", "TIFF")
    emulator.add_fault(
        Fault(path="/templates", body=b'{"templates": [{"name": "f", "inputs": ["image/png"]}]}', times=None)
    )

    assert hook.validate(hook.build_request("f", tmp_path / "a.bmp", None, None)) is not None
    with pytest.raises(FlowInputError, match=r"inputs\[1\] must be image/png, not image/tiff"):
        hook.validate(hook.build_request("f", [tmp_path / "a.bmp", tmp_path / "b.png"], None, None))


@pytest.mark.parametrize("status", [404, 500])
def test_exported_graph_replaces_a_missing_definition(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int
) -> None:
    """An exported graph validates a chain if getFlowInfo fails; an unreadable file is named."""
    (tmp_path / f"{CHAIN_ARGUMENTS['flow']}.json").write_text(
        json.dumps(sample_graphs()[CHAIN_ARGUMENTS["flow"]].source)
    )
    data = json.loads(emulator.connections["AIRFLOW_CONN_PROMPTCHAINER_DEFAULT"])
    monkeypatch.setenv(
        "AIRFLOW_CONN_PROMPTCHAINER_DEFAULT", json.dumps({**data, "extra": {"graphs": tmp_path.as_uri()}})
    )
    emulator.add_fault(Fault(path="/api/flows/getFlowInfo/*", status=status, times=None))

    error = run_task(f"validation_graph_{status}", **{**CHAIN_ARGUMENTS, "inputs": {"color": "red"}}).errors[
        "run"
    ]
    assert "variable 'item' is missing" in str(error)
    assert emulator.started_count == 0
    assert run_task(f"validation_graph_good_{status}", **CHAIN_ARGUMENTS).state == "success"
    hook = PromptChainerHook("promptchainer_default")
    assert hook.get_definition(CHAIN_ARGUMENTS["flow"]).inputs == ("color", "item")
    assert hook.get_graph("unknown") is None

    away = PromptChainerHook("promptchainer_default")
    away.connection.extra = json.dumps({"graphs": "nonsense://nowhere"})
    assert away.validate(away.build_request("unknown", {"color": "red"}, None, None)) is None

    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(
        FlowInputError, match=r"broken\.json \(field graphs of connection 'promptchainer_default'\)"
    ):
        hook.validate(hook.build_request("broken", {"color": "red"}, None, None))
