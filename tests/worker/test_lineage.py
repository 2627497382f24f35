"""Tests of lineage: the events that the real openlineage provider writes for real tasks.

An Airflow without that provider is tested in third_service/checks.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.listeners.listener import get_listener_manager as get_core_listener_manager
from airflow.providers.common.compat.sdk import get_listener_manager, redact
from airflow.providers.openlineage.plugins.listener import OpenLineageListener
from airflow.sdk import DAG
from openlineage.client.naming import dataset as naming

from airflow_provider_flows.core.redaction import MAX_PARAMETERS, MAX_REDACTED_BYTES, redact_parameters
from airflow_provider_flows.decorators import task
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.operators import RunFlowBatchOperator, RunFlowOperator
from airflow_provider_flows.storage.inputs import get_file_uris
from airflow_provider_flows.storage.paths import StorageLocation
from tests.support.airflow_run import run_dag
from tests.support.modes import MODES, run_in_mode
from tests.support.tries import BOTH_MODES, CHAIN_ARGUMENTS, CHAIR_ARGUMENTS

FACET = "flows_flowRun"
BATCH_FACET = "flows_flowBatch"
PICTURE = Path(__file__).parents[2] / "example_dags" / "images" / "chair.png"
FAST_POLLING = {"poll_interval": 0.1, "max_poll_interval": 0.2}


class Events:
    """The OpenLineage events in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, task_id: str) -> list[dict[str, Any]]:
        """Return the last event of each run of a task that ended."""
        lines = [json.loads(line) for line in self._file.read_text().splitlines()]
        return [
            event
            for event in lines
            if event["job"]["name"].endswith(f".{task_id}") and event["eventType"] in {"COMPLETE", "FAIL"}
        ]


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """Configure OpenLineage's file transport as a user does, and return the events."""
    manager = (
        get_listener_manager()
    )  # before the settings: it loads the provider's plugin, which stays registered as a listener
    get_core_listener_manager()
    file = tmp_path / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__DISABLED", "False")
    monkeypatch.setenv(
        "AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD", "True"
    )  # a fork of the tests would have their threads' locks
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
    listener = OpenLineageListener()
    manager.add_listener(listener)
    yield Events(file)
    manager.pm.unregister(listener)


pytestmark = pytest.mark.emulator(run_seconds=0.3)


def dataset_names(datasets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the datasets' names."""
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


@BOTH_MODES
def test_completed_run_has_datasets_and_facet(
    emulator: Emulator, events: Events, tmp_path: Path, *, deferrable: bool
) -> None:
    """The event has input and output files, and the run; a prompt is no file."""
    with DAG(
        f"lineage_{deferrable}", schedule=None, default_args={"deferrable": deferrable, **FAST_POLLING}
    ) as dag:
        common = {
            "flow": "model_generate_fromimage",
            "parameters": {"quality": "low"},
            "output_path": str(tmp_path / "out"),
        }
        RunFlowOperator(task_id="run", inputs=[PICTURE, {"uri": f"file://{PICTURE}"}], **common)

        @task.flow(flow=CHAIR_ARGUMENTS["flow"])
        def decorated() -> dict[str, Any]:
            return {
                "inputs": "A chair",
                "parameters": {"quality": "low"},
                "output_path": str(tmp_path / "decorated"),
            }

        @task.flow(flow="model_generate_fromimage")
        def decorated_file() -> list[Any]:
            return [{"uri": f"file://{PICTURE}"}]

        decorated()
        decorated_file()

    result = run_dag(dag)
    assert result.state == "success", result.log
    (event,), (other,) = events.of("run"), events.of("decorated")
    (of_file,) = events.of("decorated_file")
    assert dataset_names(of_file["inputs"]) == [("file", str(PICTURE))]
    returned = result.xcoms["run"]["return_value"]
    assert event["eventType"] == other["eventType"] == "COMPLETE"
    assert dataset_names(event["inputs"]) == [("file", str(PICTURE))]
    assert dataset_names(event["outputs"]) == [
        ("file", output["uri"].removeprefix("file://")) for output in returned["outputs"]
    ]
    sizes = [dataset["outputFacets"]["outputStatistics"]["size"] for dataset in event["outputs"]]
    assert sizes == [output["size"] for output in returned["outputs"]]
    facet = event["run"]["facets"][FACET]
    assert facet.pop("_producer").startswith("pkg:pypi/airflow-provider-flows@")
    assert facet.pop("_schemaURL").endswith("#/$defs/RunFacet")
    assert facet == {
        "service": "generio",
        "flow": "model_generate_fromimage",
        "flowRunId": returned["flow_run_id"],
        "state": "completed",
        "parameters": {"quality": "low"},
        "duration": returned["duration"],
    }
    assert other["inputs"] == []
    assert len(other["outputs"]) == 1
    assert other["run"]["facets"][FACET]["parameters"] == {"quality": "low"}
    assert emulator.key not in json.dumps([event, other])


@BOTH_MODES
def test_failed_run_has_inputs_and_facet(
    emulator: Emulator, events: Events, tmp_path: Path, *, deferrable: bool
) -> None:
    """The event of a failure has the run with the service's reason, and the partial outputs."""
    emulator.add_plan(Plan(outcome="failed", error="The mesh broke", partial_outputs=True))
    with DAG(
        f"lineage_failed_{deferrable}", schedule=None, default_args={"deferrable": deferrable, **FAST_POLLING}
    ) as dag:
        arguments = {
            **CHAIR_ARGUMENTS,
            "inputs": ["A chair", "A table"],
            "output_path": str(tmp_path),
            "fetch_partial_outputs": True,
        }
        RunFlowOperator(task_id="run", **arguments)
    result = run_dag(dag)
    (event,) = events.of("run")
    assert event["eventType"] == "FAIL"
    facet = event["run"]["facets"][FACET]
    assert (facet["state"], facet["error"]) == ("failed", "The mesh broke")
    assert facet["flowRunId"] == next(iter(emulator.runs))
    (output,) = [found for found in result.xcoms["run"]["outputs"] if "uri" in found]
    assert dataset_names(event["outputs"]) == [("file", output["uri"].removeprefix("file://"))]


def test_failure_without_run_has_inputs_and_timeout_has_the_run(emulator: Emulator, events: Events) -> None:
    """A task without a run has inputs only; one that timed out has the run as last polled."""
    emulator.switches.abort = "instant"
    emulator.add_plan(Plan(run_seconds=60))
    with DAG("lineage_none", schedule=None, default_args=FAST_POLLING) as dag:
        late = RunFlowOperator(task_id="late", deferrable=True, timeout=0.3, **CHAIR_ARGUMENTS)
        invalid = RunFlowOperator(
            task_id="invalid", **{**CHAIR_ARGUMENTS, "inputs": [PICTURE, 42]}, trigger_rule="all_done"
        )
        late >> invalid
    run_dag(dag)
    (event,) = events.of("invalid")
    assert (event["eventType"], dataset_names(event["inputs"]), event["outputs"]) == (
        "FAIL",
        [("file", str(PICTURE))],
        [],
    )
    assert FACET not in event["run"]["facets"]
    (event,) = events.of("late")
    assert event["run"]["facets"][FACET]["flowRunId"] == next(iter(emulator.runs))
    assert "duration" not in event["run"]["facets"][FACET]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.startswith("sensor")])
def test_sensor_has_outputs_and_facet(emulator: Emulator, events: Events, tmp_path: Path, mode: str) -> None:
    """The event of a sensor has its outputs and the run, in every mode."""
    wait = run_in_mode(mode, emulator, output_path=str(tmp_path))
    assert wait.return_value is not None
    event = events.of("wait")[-1]
    assert dataset_names(event["outputs"]) == [
        ("file", wait.return_value["outputs"][0]["uri"].removeprefix("file://"))
    ]
    assert (event["run"]["facets"][FACET]["flowRunId"], event["inputs"]) == (wait.flow_run_id, [])


def test_promptchainer_run_has_no_input_datasets(emulator: Emulator, events: Events, tmp_path: Path) -> None:
    """A variable is never a dataset; the image output is one, without the signature of its link."""
    with DAG("lineage_chain", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            **{**CHAIN_ARGUMENTS, "inputs": {"color": "s3://red/ball", "item": "x"}},
            output_path=str(tmp_path),
        )
    assert run_dag(dag).state == "success"
    (event,) = events.of("run")
    assert (event["inputs"], len(event["outputs"])) == ([], 1)
    assert event["run"]["facets"][FACET]["service"] == "promptchainer"
    assert "sig=" not in json.dumps(event)
    assert emulator.started_count == 1


NAMES = [
    ("s3://b/f/a b.glb", naming.S3("b", "f/a b.glb")),
    ("s3a://key:secret@b/a.glb", naming.S3("b", "a.glb")),
    ("s3://connection@b/a#1?.glb", naming.S3("b", "a#1?.glb")),
    ("gcs://b/a.glb", naming.GCS("b", "a.glb")),
    ("file:///tmp/a.glb", naming.LocalFileSystem("/tmp/a.glb")),  # noqa: S108  # a name here
    ("file://host/a.glb", naming.RemoteFileSystem("host", "/a.glb")),
    ("abfss://c@account.dfs.core.windows.net/d/a.glb", naming.ABFSS("c", "account", "d/a.glb")),
]


@pytest.mark.parametrize(("uri", "expected"), NAMES)
def test_dataset_names_match_openlineage(uri: str, expected: naming.DatasetNaming) -> None:
    """Files have the names of OpenLineage's own library, so that the lineage of other tools connects."""
    location = StorageLocation.parse(uri)
    assert location is not None
    assert (location.namespace, location.name) == (expected.get_namespace(), expected.get_name())


def test_dataset_names_have_no_secrets() -> None:
    """The name of a dataset has neither the signature nor the credentials of its URL."""
    location = StorageLocation.parse("https://user:secret@files.example/a.png?sig=secret#part")
    assert location is not None
    assert (location.namespace, location.name) == ("https://files.example", "a.png")
    signed = StorageLocation.parse("az://box/a.png?sv=2024&sig=secret")
    assert signed is not None
    assert (signed.namespace, signed.name) == ("az://box", "a.png")
    assert StorageLocation.parse("no uri") is None


def test_file_uris_are_found_without_reading_files() -> None:
    """A file is found in each accepted form of inputs, and in nothing else."""
    output = {
        "name": "a",
        "asset_id": "1",
        "status": "ready",
        "media_type": "image/png",
        "uri": "s3://b/a.png",
    }
    run = {"flow_run_id": "r", "outputs": [output, {**output, "uri": None}]}
    assert get_file_uris(None) == get_file_uris("A chair") == get_file_uris({"data": "A chair"}) == []
    assert get_file_uris(
        [
            "s3://b/w.png",
            {"uri": "s3://b/x.png"},
            "see s3://b/y.png",
            Path("/a/b.png"),
            {"uri": "s3://b/z.png", "additional": 1},
        ]
    ) == [
        "s3://b/x.png",
        "file:///a/b.png",
        "s3://b/z.png",
    ]
    assert (
        get_file_uris(run)
        == get_file_uris([run])
        == get_file_uris([[output]])
        == get_file_uris(output)
        == ["s3://b/a.png"]
    )
    assert get_file_uris({"text": {"uri": "s3://b/t.txt"}, "color": "s3://b/red"}) == ["s3://b/t.txt"]


def test_parameters_are_redacted_and_limited() -> None:
    """Secrets are masked at any depth, the largest parameters are left out, and their number is limited."""
    deep: dict[str, Any] = {"password": "s3cret-value"}
    for _ in range(9):
        deep = {"in": [deep]}
    redacted = redact_parameters(
        {
            "api_key": "s3cret-value",
            "deep": deep,
            "seed": 7,
            "text": "x" * MAX_REDACTED_BYTES,
            "path": PICTURE,
        },
        redact,
    )
    assert "s3cret-value" not in json.dumps(redacted)
    assert (redacted["seed"], redacted["path"], redacted["text"]) == (
        7,
        str(PICTURE),
        f"left out: {MAX_REDACTED_BYTES + 2} bytes",
    )
    assert (
        len(redact_parameters({str(number): number for number in range(10 * MAX_PARAMETERS)}, redact))
        == MAX_PARAMETERS
    )
    assert redact_parameters(None, redact) == redact_parameters("text", redact) == {}


SIGNED = "https://store.example/a.png?X-Amz-Date=1&X-Amz-Signature=0123456789abcdef0123"


def test_signatures_are_stripped_from_parameters() -> None:
    """A signed URL in parameters, also within a text, loses its query; an unsigned one is not changed."""
    parameters = {
        "texture": SIGNED,
        "deep": [{"in": f"see {SIGNED} and gs://b/k?Signature=short, and that"}],
        "page": "https://a.example/?q=1",
    }
    assert redact_parameters(parameters, redact) == {
        "texture": "https://store.example/a.png",
        "deep": [{"in": "see https://store.example/a.png and gs://b/k and that"}],
        "page": "https://a.example/?q=1",
    }


def test_signature_in_parameter_is_sent_to_the_service_only(emulator: Emulator, events: Events) -> None:
    """The service gets the complete URL; XCom, our lineage and Airflow's log have no signature."""
    emulator.switches.unknown_parameter = "ignore"
    with DAG("lineage_signed", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            **{**CHAIR_ARGUMENTS, "parameters": {"texture_from": SIGNED}},
            validate=False,
            **FAST_POLLING,
        )
    result = run_dag(dag)

    (creation,) = (
        request for request in emulator.requests if (request.method, request.path) == ("POST", "/flows")
    )
    assert creation.json["parameters"] == {"texture_from": SIGNED}
    (event,) = events.of("run")
    assert event["run"]["facets"][FACET]["parameters"] == {"texture_from": "https://store.example/a.png"}
    of_others = event["run"]["facets"].pop(
        "airflow"
    )  # the openlineage provider's own, which copies a task's arguments
    assert "parameters" in of_others["task"]
    reason = str(redact(f"Reason given by the service: no texture at {SIGNED}"))
    assert reason.startswith(
        "Reason given by the service: no texture at https://store.example/a.png?X-Amz-Date=1&X-Amz-Signature=***"
    )
    for redacted in (json.dumps(event), json.dumps(result.xcoms), result.log, reason):
        assert "0123456789abcdef0123" not in redacted


@pytest.mark.parametrize("has_failed", [False, True], ids=["completed", "failed"])
def test_batch_has_one_dataset_for_its_items_and_one_for_its_outputs(
    emulator: Emulator, events: Events, tmp_path: Path, *, has_failed: bool
) -> None:
    """The event of a batch has the file of its items, the folder of its outputs, and its counts."""
    if has_failed:
        emulator.add_plan(Plan(outcome="failed", error="The mesh broke"))
    items = tmp_path / "items.jsonl"
    items.write_text('{"key": "a", "inputs": "A secret chair"}\n{"key": "b", "inputs": "A secret table"}\n')
    arguments = {"flow": CHAIR_ARGUMENTS["flow"], "parameters": {"quality": "low"}, **FAST_POLLING}
    with DAG(f"lineage_batch_{has_failed}", schedule=None) as dag:
        RunFlowBatchOperator(
            task_id="batch", items=str(items), output_path=f"file://{tmp_path}/out/", **arguments
        ) >> RunFlowBatchOperator(
            task_id="list",
            items=["A secret lamp"],
            output_path=str(tmp_path / "list"),
            trigger_rule="all_done",
            **arguments,
        )

    run_dag(dag)

    (event,), (of_list,) = events.of("batch"), events.of("list")
    assert event["eventType"] == ("FAIL" if has_failed else "COMPLETE")
    assert dataset_names(event["inputs"]) == [("file", str(items))]
    assert dataset_names(event["outputs"]) == [("file", str(tmp_path / "out"))]
    facet = event["run"]["facets"][BATCH_FACET]
    counts = {name: facet[name] for name in ("total", "completed", "failed", "aborted", "reused")}
    completed = 1 if has_failed else 2
    expected = {"total": 2, "completed": completed, "failed": 2 - completed, "aborted": 0, "reused": 0}
    assert counts == expected
    assert (facet["service"], facet["flow"]) == ("generio", CHAIR_ARGUMENTS["flow"])
    assert facet["manifest"] == f"file://{tmp_path}/out/manifest.jsonl"
    assert facet["parameters"] == {"quality": "low"}
    assert dataset_names(of_list["inputs"]) == []
    assert dataset_names(of_list["outputs"]) == [("file", str(tmp_path / "list"))]
    assert "secret lamp" not in json.dumps(of_list["inputs"])


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ("s3://user:key@shop/prompts.jsonl", ("s3://shop", "prompts.jsonl")),
        ("s3://shop/photos/*.png", ("s3://shop", "photos")),
        ("/data/photos/chair-?.png", ("file", "/data/photos")),
        (Path("/data/items.csv"), ("file", "/data/items.csv")),
        ("https://example.com/items.csv?sig=secret", ("https://example.com", "items.csv")),
        (["/data/items.csv"], None),
        ("['A chair', 'A table']", None),
    ],
)
def test_dataset_of_the_items_of_a_batch(items: Any, expected: tuple[str, str] | None) -> None:
    """The file of the items, or its folder, is a dataset without credentials; a list or a text is none."""
    from airflow_provider_flows.worker.lineage import create_batch_lineage

    lineage = create_batch_lineage(items, "s3://shop/models/", None, {})
    assert [(one.namespace, one.name) for one in lineage.inputs] == ([expected] if expected else [])
    assert lineage.outputs == []
