"""Tests of a task's `check_outputs`: what it returns and raises, in each mode and with each service."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset

from airflow_provider_flows.checks import CheckedOutput, GlbCheck, ImageCheck, TextCheck
from airflow_provider_flows.compat import HAS_RETRY_POLICIES
from airflow_provider_flows.core.exceptions import FlowInputError, FlowOutputRejected
from airflow_provider_flows.decorators import task
from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.operators import FetchFlowRunOperator, RunFlowOperator
from tests.support.airflow_run import run_dag
from tests.support.checked_runs import (
    TOO_EARLY,
    create_task,
    get_run_ids,
    get_seeds,
    reject_first,
    run_deferred,
)
from tests.support.modes import FAST_POLLING, FLOW, SENSORS, run_in_mode
from tests.support.task_instances import AIRFLOW_KINDS, Store, context
from tests.support.tries import BOTH_MODES, CHAIN_ARGUMENTS

pytestmark = [
    pytest.mark.emulator(run_seconds=0.2, abort="instant", retries=0),
    pytest.mark.usefixtures("short_search"),
]


def run_checked(folder: Path, dag_id: str, **arguments: Any) -> Any:
    """Run one task with checks in a DAG run, with two retries."""
    defaults: dict[str, Any] = {
        "flow": FLOW,
        "inputs": "A chair",
        "parameters": {"quality": "low"},
        "output_path": str(folder),
        "retries": 2,
        "retry_delay": timedelta(0),
        **FAST_POLLING,
    }
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **{**defaults, **arguments})
    return run_dag(dag)


@BOTH_MODES
def test_accepted_outputs_have_their_verdict(emulator: Emulator, tmp_path: Path, deferrable: bool) -> None:
    """What satisfies the checks is returned with the facts of its file, and one run is paid for."""
    check = GlbCheck(max_triangles=100_000, max_bytes=10**7)
    outcome = run_checked(tmp_path, "accepted", check_outputs=check, deferrable=deferrable)
    result = outcome.xcoms["run"]["return_value"]
    assert result["verdict"] == {"accepted": True, "problems": [], "paid_runs": 1, "rejected_runs": []}
    (output,) = result["outputs"]
    assert output["verdict"]["accepted"] is True
    assert output["verdict"]["facts"]["triangles"] > 0
    assert len(emulator.paid_runs) == 1


@BOTH_MODES
def test_rejected_outputs_fail_the_task_and_stay(
    emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    """The file stays, XCom has it with its verdict, and the provider's retry policy allows no retry."""
    check = [GlbCheck(max_triangles=1), lambda _: None]
    outcome = run_checked(tmp_path, "rejected", check_outputs=check, deferrable=deferrable)
    error = outcome.errors["run"]
    assert type(error) is FlowOutputRejected
    assert "more than max_triangles (1)" in str(error)
    (output,) = outcome.xcoms["run"]["outputs"]
    assert output["uri"] in str(error)
    assert Path(output["uri"].removeprefix("file://")).stat().st_size == output["size"]
    assert output["verdict"]["accepted"] is False
    verdict = outcome.xcoms["run"]["verdict"]
    assert (verdict["accepted"], verdict["paid_runs"], verdict["rejected_runs"]) == (False, 1, [])
    assert "return_value" not in outcome.xcoms["run"]
    assert len(emulator.paid_runs) == 1
    if HAS_RETRY_POLICIES:
        assert outcome.log.count("do not satisfy check_outputs") == 1


@BOTH_MODES
def test_retry_of_rejected_outputs_pays_nothing(emulator: Emulator, tmp_path: Path, deferrable: bool) -> None:
    """A task that is retried nevertheless finds the same flow run, and rejects it again."""
    store, run = Store(), run_deferred if deferrable else lambda create, ctx: create().execute(ctx)
    for try_number in (1, 2, 3):
        with pytest.raises(FlowOutputRejected):
            run(
                lambda: create_task(
                    tmp_path, check_outputs=GlbCheck(max_bytes=1), on_rejected="fail", deferrable=deferrable
                ),
                context(store, try_number, 2),
            )
    assert len(emulator.paid_runs) == 1


@BOTH_MODES
def test_rejected_run_is_replaced_with_another_seed(
    emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    """The flow is run once more, with another seed; the result counts both runs and names the first."""
    outcome = run_checked(
        tmp_path,
        "again",
        check_outputs=[GlbCheck(), reject_first(tmp_path, 1)],
        on_rejected="again",
        parameters={"quality": "low", "seed": 7},
        deferrable=deferrable,
    )
    first_id, second_id = get_run_ids(emulator)
    result = outcome.xcoms["run"]["return_value"]
    assert result["flow_run_id"] == second_id == outcome.xcoms["run"]["flow_run_id"]
    verdict = result["verdict"]
    assert (verdict["accepted"], verdict["paid_runs"]) == (True, 2)
    (rejected,) = verdict["rejected_runs"]
    assert rejected["flow_run_id"] == first_id
    assert TOO_EARLY in rejected["problems"][0]
    first_seed, second_seed = get_seeds(emulator)
    assert first_seed == 7
    assert second_seed not in {None, 7}
    assert "outputs" not in outcome.xcoms["run"]  # of the rejected run
    assert len(list(tmp_path.glob("*/*.glb"))) == 2  # both are paid for


@BOTH_MODES
@pytest.mark.parametrize("kind", AIRFLOW_KINDS)
def test_number_of_runs_is_bounded(emulator: Emulator, tmp_path: Path, deferrable: bool, kind: str) -> None:
    """After `check_retries` other runs the task fails, also in later tries, and no other is paid for."""
    store = Store()

    def create() -> RunFlowOperator:
        return create_task(
            tmp_path, check_outputs=reject_first(tmp_path, 9), check_retries=2, deferrable=deferrable
        )

    for try_number in (1, 2):
        with pytest.raises(FlowOutputRejected, match="3 flow runs of this task are paid for"):
            run_deferred(create, context(store, try_number, 2, kind=AIRFLOW_KINDS[kind]))
        assert len(emulator.paid_runs) == 3
    assert len(set(get_seeds(emulator))) == 3


@BOTH_MODES
@pytest.mark.parametrize("kind", AIRFLOW_KINDS)
def test_later_try_continues_with_the_run_that_replaces_another(
    emulator: Emulator, tmp_path: Path, deferrable: bool, kind: str
) -> None:
    """A try that ends during the second run leaves it to the next one, with its seed and the count."""
    store, folder = Store(), tmp_path / "models"
    calls = 0

    def is_interrupted(output: CheckedOutput) -> str | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("the store is not available")
        return reject_first(folder, 1)(output)

    def create() -> RunFlowOperator:
        return create_task(folder, check_outputs=is_interrupted, deferrable=deferrable)

    with pytest.raises(OSError, match="the store is not available"):
        run_deferred(create, context(store, 1, 2, kind=AIRFLOW_KINDS[kind]))
    result = run_deferred(create, context(store, 2, 2, kind=AIRFLOW_KINDS[kind]))
    assert get_run_ids(emulator) == [
        result["verdict"]["rejected_runs"][0]["flow_run_id"],
        result["flow_run_id"],
    ]
    assert result["verdict"]["paid_runs"] == 2


def test_failed_run_in_place_of_a_rejected_one_is_a_failure(emulator: Emulator, tmp_path: Path) -> None:
    """A second run that fails fails the task; a retry starts it again, and does not run the first again."""
    emulator.add_plan(Plan())
    emulator.add_plan(Plan("failed", error="no memory"))
    store = Store()
    with pytest.raises(Exception, match="no memory"):
        create_task(tmp_path).execute(context(store, 1, 1))
    result = create_task(tmp_path).execute(context(store, 2, 1))
    first, second, third = get_run_ids(emulator)
    assert result["flow_run_id"] == third
    assert result["verdict"]["rejected_runs"][0]["flow_run_id"] == first
    seeds = get_seeds(emulator)
    assert seeds[1] == seeds[2] != seeds[0]
    assert second not in json.dumps(result["verdict"])


def test_changed_arguments_start_over(emulator: Emulator, tmp_path: Path) -> None:
    """A try with another prompt has nothing to do with the runs that were rejected for the old one."""
    store = Store()
    create_task(tmp_path).execute(context(store, 1, 1))
    result = create_task(tmp_path, inputs="A table").execute(context(store, 2, 1))
    assert result["verdict"]["paid_runs"] == 1
    assert get_seeds(emulator)[2] is None


@BOTH_MODES
def test_cleared_task_starts_over(emulator: Emulator, tmp_path: Path, deferrable: bool) -> None:
    """A person who clears the task wants a new flow run, as the author has asked for it."""
    store = Store()

    def create() -> RunFlowOperator:
        return create_task(tmp_path, deferrable=deferrable)

    run_deferred(create, context(store, 1, 0))
    result = run_deferred(create, context(store, 2, 1))
    assert result["verdict"]["paid_runs"] == 1
    assert get_seeds(emulator)[2] is None


@pytest.mark.parametrize("has_store", [True, False])
def test_promptchainer_runs_again_without_a_seed(emulator: Emulator, tmp_path: Path, has_store: bool) -> None:
    """A flow without a seed is simply run again, and each of its runs is saved for a retry."""
    store = Store()
    arguments = {**CHAIN_ARGUMENTS, "parameters": None, "check_outputs": reject_first_output()}
    kind = AIRFLOW_KINDS["store" if has_store else "no store"]
    result = create_task(tmp_path, **arguments).execute(context(store, 1, 1, kind=kind))
    assert result["verdict"]["paid_runs"] == len(emulator.paid_runs) == 2
    if has_store:
        again = create_task(tmp_path, **arguments).execute(context(store, 2, 1))
        assert again["flow_run_id"] == result["flow_run_id"]
        assert len(emulator.paid_runs) == 2


def reject_first_output() -> Any:
    """Return a check that rejects the first output that it gets, and accepts all others."""
    seen: list[str] = []

    def is_new(output: CheckedOutput) -> bool:
        seen.append(output.name)
        return len(seen) > 1

    return is_new


@BOTH_MODES
def test_decorated_function_is_called_again_for_another_run(
    emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    """`@task.flow` has the same arguments; after a deferral its function returns the inputs again."""
    with DAG("checked_decorator", schedule=None) as dag:

        @task.flow(
            flow=FLOW,
            parameters={"quality": "low", "seed": 3},
            output_path=str(tmp_path),
            check_outputs=reject_first(tmp_path, 1),
            on_rejected="again",
            deferrable=deferrable,
            **FAST_POLLING,
        )
        def make_chair(prompt: str) -> str:
            return f"A {prompt} chair"

        make_chair("blue")
    outcome = run_dag(dag)
    result = outcome.xcoms["make_chair"]["return_value"]
    assert result["verdict"]["paid_runs"] == 2
    inputs = [[item.media.content.decode() for item in run.inputs] for run in emulator.runs.values()]
    assert inputs == [["A blue chair"], ["A blue chair"]]
    assert [run.explicit_parameters["quality"] for run in emulator.runs.values()] == ["low", "low"]
    assert get_seeds(emulator)[0] == 3 != get_seeds(emulator)[1]


def test_mapped_tasks_are_checked_one_by_one(emulator: Emulator, tmp_path: Path) -> None:
    """Each mapped task has verdicts of its own."""
    with DAG("checked_mapped", schedule=None) as dag:
        RunFlowOperator.partial(
            task_id="run",
            flow=FLOW,
            output_path=str(tmp_path),
            check_outputs=[GlbCheck(max_triangles=100_000)],
            **FAST_POLLING,
        ).expand(inputs=["A chair", "A table"])
    outcome = run_dag(dag)
    verdicts = [outcome.xcoms[f"run[{index}]"]["return_value"]["verdict"] for index in range(2)]
    assert [verdict["accepted"] for verdict in verdicts] == [True, True]
    assert len(emulator.paid_runs) == 2


def test_event_of_an_asset_has_the_verdict(emulator: Emulator, tmp_path: Path) -> None:
    """Whoever consumes the asset sees what was checked."""
    outlet = Asset(f"file://{tmp_path}/asset")
    with DAG("checked_asset", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            flow=FLOW,
            inputs="A chair",
            output_path=str(tmp_path),
            check_outputs=GlbCheck(),
            outlets=[outlet],
            **FAST_POLLING,
        )

        @task
        def read(*, inlet_events: Any = None) -> Any:
            return dict(inlet_events[outlet][-1].extra)

        dag.task_dict["run"] >> read.override(inlets=[outlet])()
    extra = run_dag(dag).xcoms["read"]["return_value"]
    assert extra["verdict"]["accepted"] is True
    assert len(emulator.paid_runs) == 1


def test_lineage_has_the_verdict(emulator: Emulator, tmp_path: Path) -> None:
    """The facet of the flow run has what was checked, whether the task has succeeded or not."""
    accepted = create_task(tmp_path, check_outputs=GlbCheck())
    accepted.execute(context(Store()))
    rejected = create_task(tmp_path, check_outputs=GlbCheck(max_bytes=1), on_rejected="fail")
    with pytest.raises(FlowOutputRejected):
        rejected.execute(context(Store()))
    verdicts = [
        operator.get_openlineage_facets_on_complete(None).run_facets["flows_flowRun"].verdict
        for operator in (accepted, rejected)
    ]
    assert [verdict["accepted"] for verdict in verdicts] == [True, False]
    assert "max_bytes (1)" in verdicts[1]["problems"][0]
    assert len(emulator.paid_runs) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"check_outputs": GlbCheck(), "output_path": None}, "has GlbCheck, which reads stored files"),
        ({"check_outputs": [ImageCheck()], "output_path": None}, "has ImageCheck"),
        ({"check_outputs": GlbCheck(), "wait_for_completion": False}, "cannot be combined with wait_for"),
        ({"check_outputs": None, "on_rejected": "again"}, "needs check_outputs"),
        ({"check_outputs": 5}, "check_outputs must be a GlbCheck"),
        ({"check_retries": 0}, "check_retries must be"),
    ],
)
def test_arguments_that_make_no_sense_are_rejected_in_the_dag_file(
    tmp_path: Path, arguments: dict[str, Any], expected: str
) -> None:
    """The error names the argument, before any task runs."""
    with pytest.raises(FlowInputError, match=expected):
        RunFlowOperator(task_id="t", flow=FLOW, **{"output_path": str(tmp_path), **arguments})


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (GlbCheck(is_watertight=True), "needs trimesh in the worker: pip install"),
        (TextCheck(json_schema={"type": 5}), "json_schema is not a valid JSON Schema"),
    ],
)
def test_missing_requirement_is_found_before_a_run_is_paid(
    emulator: Emulator, tmp_path: Path, check: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot do a check starts no flow run."""
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(FlowInputError, match=expected):
        create_task(tmp_path, check_outputs=check).execute(context(Store()))
    assert emulator.requests == () or not emulator.paid_runs


def test_text_outputs_are_checked_without_a_folder(emulator: Emulator) -> None:
    """PromptChainer's texts need no `output_path`."""
    arguments = {**CHAIN_ARGUMENTS, "check_outputs": [TextCheck(max_characters=10_000)]}
    result = RunFlowOperator(task_id="t", **arguments).execute(context(Store()))
    assert result["verdict"]["accepted"] is True
    assert len(emulator.paid_runs) == 1


def test_rejection_is_logged_with_what_it_costs(
    emulator: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log of the task says why another run is started, and that it is billed."""
    create_task(tmp_path).execute(context(Store()))
    assert f"{TOO_EARLY}. Another flow run is started, which is billed (1 of 1)" in capsys.readouterr().out
    assert len(emulator.paid_runs) == 2


@pytest.mark.parametrize("mode", SENSORS)
def test_sensors_and_fetches_reject_outputs_as_well(emulator: Emulator, tmp_path: Path, mode: str) -> None:
    """The end of a task is the same in all modes, also for a run that was started elsewhere."""
    arguments = {"output_path": str(tmp_path), "check_outputs": GlbCheck(max_bytes=1)}
    result = run_in_mode(mode, emulator, [60], **arguments)
    assert type(result.error) is FlowOutputRejected
    assert "more than max_bytes (1)" in str(result.error)
    accepted = FetchFlowRunOperator(
        task_id="t", flow_run_id=result.flow_run_id, **{**arguments, "check_outputs": GlbCheck()}
    )
    assert accepted.execute(context(Store()))["verdict"]["accepted"] is True


def run_reusing(folder: Path, **arguments: Any) -> dict[str, Any]:
    """Run one task that reuses outputs."""
    defaults: dict[str, Any] = {"reuse": True, "on_rejected": "fail", "check_outputs": None}
    return create_task(folder, **{**defaults, **arguments}).execute(context(Store()))


def test_entry_that_does_not_satisfy_the_checks_is_not_reused(emulator: Emulator, tmp_path: Path) -> None:
    """Outputs are reused only by a task whose checks accept them, with a verdict of its own."""
    first = run_reusing(tmp_path)
    size = first["outputs"][0]["size"]
    with pytest.raises(FlowOutputRejected):
        run_reusing(tmp_path, check_outputs=GlbCheck(max_bytes=size - 1))
    assert len(emulator.paid_runs) == 2
    reused = run_reusing(tmp_path, check_outputs=GlbCheck(max_bytes=size))
    assert reused["flow_run_id"] == first["flow_run_id"]
    assert reused["verdict"] == {"accepted": True, "problems": [], "paid_runs": 0, "rejected_runs": []}
    assert "verdict" not in run_reusing(tmp_path)
    assert len(emulator.paid_runs) == 2


def test_rejected_outputs_are_not_in_the_index(emulator: Emulator, tmp_path: Path) -> None:
    """A rejected run is reused by no task; the accepted one is, also for the request of the first."""
    with pytest.raises(FlowOutputRejected):
        run_reusing(tmp_path, check_outputs=GlbCheck(max_bytes=1))
    again = run_reusing(tmp_path, check_outputs=reject_first(tmp_path, 2), on_rejected="again")
    assert len(emulator.paid_runs) == 3
    assert run_reusing(tmp_path)["flow_run_id"] == again["flow_run_id"]
    assert len(emulator.paid_runs) == 3


def test_seed_of_the_author_is_a_part_of_the_reused_request(emulator: Emulator, tmp_path: Path) -> None:
    """If the author has set a seed, no task with that seed gets the outputs of another one."""
    own = {"parameters": {"quality": "low", "seed": 4}}
    run_reusing(tmp_path, check_outputs=reject_first(tmp_path, 1), on_rejected="again", **own)
    assert len(emulator.paid_runs) == 2
    run_reusing(tmp_path, **own)
    assert get_seeds(emulator)[2] == 4


def test_rejected_run_is_not_deleted_at_its_service(emulator: Emulator, tmp_path: Path) -> None:
    """With `delete_after_fetch` only the run whose outputs are accepted is deleted."""
    create_task(tmp_path, delete_after_fetch=True).execute(context(Store()))
    first, second = get_run_ids(emulator)
    assert (first in emulator.runs, second in emulator.runs) == (True, False)


@BOTH_MODES
def test_no_run_is_started_after_the_execution_timeout(
    emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    """Another run would be paid for, and aborted at once."""
    try_context, number = context(Store()), 0

    def create() -> RunFlowOperator:
        nonlocal number
        number += 1
        if not deferrable or number == 2:  # the try has lasted for an hour when its run has completed
            try_context["ti"].start_date -= timedelta(hours=1)
        limit = timedelta(minutes=30)
        return create_task(tmp_path, execution_timeout=limit, deferrable=deferrable and number == 1)

    with pytest.raises(FlowOutputRejected):
        run_deferred(create, try_context)
    assert len(emulator.paid_runs) == 1


def test_api_server_loads_no_check() -> None:
    """The pages read headers with the same module as the checks, and neither geometry nor trimesh."""
    script = (
        "import sys, airflow_provider_flows.plugin.routes\n"
        "print([name for name in sys.modules if name == 'trimesh' or 'provider_flows.checks' in name])\n"
        "print('airflow_provider_flows.core.gltf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-3:-1] == ["[]", "True"]
