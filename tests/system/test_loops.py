"""Tests of task loops in a real Airflow: each iteration has a flow run of its own.

All DAG runs start together, because most of the time is waiting; each test then checks its own.
"""

from __future__ import annotations

import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.emulator.state import GenerioRun
from tests.support.airflow_run import empty_database
from tests.support.versions import needs
from tools.airflow_stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(500), needs("task loops")]

LESSON = "generate_until_good"
EXAMPLES = Path(__file__).parents[2] / "example_dags"
MAX_WAIT_SECONDS = 150.0
SLOW_RUN_SECONDS = 600.0  # a flow run that is in progress when its task is killed
ITERATIONS = 2
WAYS = ("blocking", "deferrable", "sensor", "deferrable_sensor", "mapped", "decorated", "resumed")
DAGS = """
from airflow.sdk import DAG, Asset, task_group
from airflow_provider_flows.decorators import task
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor

FLOW = {"flow": "model_generate_fromprompt", "parameters": {"quality": "low"}, "poll_interval": 1}

class FailsOnceOperator(RunFlowOperator):
    def get_run_tracker(self, context, *args, **kwargs):
        track = super().get_run_tracker(context, *args, **kwargs)
        def track_and_fail(run):
            track(run)
            if context["ti"].try_number == 1:
                raise RuntimeError("after the start, in the first try of each iteration")
        return track_and_fail

def blocking():
    RunFlowOperator(task_id="run", inputs="{{ loop.index }}", outlets=[Asset("made_in_a_loop")], **FLOW)
def deferrable():
    RunFlowOperator(task_id="run", inputs="{{ loop.index }}", deferrable=True, **FLOW)
def sensor():
    start = RunFlowOperator(task_id="run", inputs="{{ loop.index }}", wait_for_completion=False, **FLOW)
    FlowRunSensor(task_id="wait", flow_run_id=start.output["flow_run_id"], poll_interval=1, mode="reschedule")
def deferrable_sensor():
    start = RunFlowOperator(task_id="run", inputs="{{ loop.index }}", wait_for_completion=False, **FLOW)
    FlowRunSensor(task_id="wait", flow_run_id=start.output["flow_run_id"], poll_interval=1, deferrable=True)
def mapped():
    RunFlowOperator.partial(task_id="run", deferrable=True, **FLOW).expand(inputs=["a", "b"])
def decorated():
    @task.flow(task_id="run", **FLOW)
    def run(*, loop):
        return str(loop.index)
    run()
def resumed():
    FailsOnceOperator(task_id="run", inputs="{{ loop.index }}", retries=1, retry_delay=0, **FLOW)
def killed_blocking():
    RunFlowOperator(task_id="run", inputs="{{ loop.index }}", **FLOW)
def killed_deferrable():
    RunFlowOperator(task_id="run", inputs="{{ loop.index }}", deferrable=True, **FLOW)
def replaced():
    first = RunFlowOperator(task_id="run", inputs="{{ loop.index }}", deferrable=True, **FLOW)
    @task
    def check(made):
        return made
    check(first.output)

for body in (blocking, deferrable, sensor, deferrable_sensor, mapped, decorated, resumed,
             killed_blocking, killed_deferrable, replaced):
    with DAG(body.__name__, schedule=None) as dag:
        task_group(group_id="again")(body).loop(max_iterations=2)
    globals()[body.__name__] = dag
"""


@dataclass
class Loops:
    """The Airflow, the service, and a run of each DAG."""

    airflow: Stack
    emulator: Emulator
    runs: dict[str, str]

    def flow_runs(self, dag_id: str) -> list[GenerioRun]:
        """Return the flow runs that a DAG has created, oldest first."""
        return [run for run in self.emulator.runs.values() if stamp(run)["dag_id"] == dag_id]

    def task_instances(self, dag_id: str, task_id: str = "again.run") -> list[dict[str, Any]]:
        """Return a task's instances, in the order of the iterations."""
        found = self.airflow.task_instances(dag_id, self.runs[dag_id])
        return sorted(
            (ti for ti in found if ti["task_id"] == task_id),
            key=lambda ti: (ti["region_id"], ti["region_index"]),
        )

    def wait_for_task(self, dag_id: str, state: str) -> dict[str, Any]:
        """Wait until the task of the second iteration has a state, and return its instance."""

        def find() -> dict[str, Any] | None:
            second = self.task_instances(dag_id)[1:]
            return second[0] if second and second[0]["state"] == state else None

        return wait_for(find)

    def xcom(self, ti: dict[str, Any], key: str) -> Any:
        """Return an XCom of one iteration."""
        path = (
            f"dags/{ti['dag_id']}/dagRuns/{self.runs[ti['dag_id']]}/taskInstances/{ti['task_id']}/xcomEntries"
        )
        params = {
            "region_id": ti["region_id"],
            "region_index": ti["region_index"],
            "deserialize": "false",
            "stringify": "false",
        }
        return self.airflow.call("GET", f"{path}/{key}", params=params).json()["value"]

    def log_files(self) -> str:
        """Return the text of all logs."""
        return "".join(path.read_text() for path in self.airflow.home.rglob("*.log") if path.is_file())


def stamp(run: GenerioRun) -> dict[str, Any]:
    """Return what a flow run says about the task that started it."""
    found: dict[str, Any] = run.additional["airflow_start"]
    return found


def wait_for(get: Callable[[], Any]) -> Any:
    """Wait until a function returns something, and return it."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while not (result := get()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return result


def trigger(airflow: Stack, dag_id: str, conf: dict[str, Any] | None = None) -> str:
    """Trigger a DAG, again if SQLite was locked by another process."""

    def attempt() -> str | None:
        try:
            return airflow.trigger(dag_id, conf)
        except RuntimeError as error:
            if "Database error" not in str(error):
                raise
            return None

    return str(wait_for(attempt))


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loops]:
    """Start an Airflow with all DAGs."""
    home = tmp_path_factory.mktemp("loops")
    dags = home / "dags"
    dags.mkdir()
    (dags / "loops.py").write_text(textwrap.dedent(DAGS))
    shutil.copy(EXAMPLES / f"{LESSON}.py", dags)
    with (
        Emulator(run_seconds=2) as emulator,
        Stack(home, dags, environment=emulator.connections, tuned=True, database=empty_database()) as airflow,
    ):
        runs: dict[str, str] = {}
        everything = Loops(airflow, emulator, runs)
        for dag_id in ("killed_blocking", "killed_deferrable", "replaced"):  # plans are used in order
            emulator.add_plan(Plan(run_seconds=2))
            emulator.add_plan(Plan(run_seconds=SLOW_RUN_SECONDS))
            runs[dag_id] = trigger(airflow, dag_id)
            wait_for(lambda dag_id=dag_id: len(everything.flow_runs(dag_id)) == ITERATIONS)
        for dag_id in WAYS:
            runs[dag_id] = trigger(airflow, dag_id)
        runs[LESSON] = trigger(airflow, LESSON, {"output_path": f"file://{home}/models"})
        yield everything


@pytest.mark.parametrize("dag_id", WAYS)
def test_each_iteration_has_its_own_flow_run(loops: Loops, dag_id: str) -> None:
    """Each iteration starts one flow run, and has its id and its result as XComs; a retry resumes it."""
    assert loops.airflow.wait(dag_id, loops.runs[dag_id], MAX_WAIT_SECONDS) == "success", loops.log_files()

    instances = loops.task_instances(dag_id)
    flow_runs = loops.flow_runs(dag_id)
    assert len(flow_runs) == len(instances) == ITERATIONS * (2 if dag_id == "mapped" else 1)
    pushed = [loops.xcom(ti, "flow_run_id") for ti in instances]
    assert Counter(pushed) == Counter(run.flow_run_id for run in flow_runs)
    assert [loops.xcom(ti, "return_value")["flow_run_id"] for ti in instances] == pushed
    assert {run.state for run in flow_runs} == {"completed"}
    for ti, flow_run_id in zip(instances, pushed, strict=True):
        found = stamp(loops.emulator.runs[flow_run_id])
        assert (found["task_id"], found["run_id"]) == ("again.run", loops.runs[dag_id])
        names = ("map_index", "region_id", "region_index")
        assert [found[name] for name in names] == [ti[name] for name in names]
    expected_try = 2 if dag_id == "resumed" else 1
    assert {ti["try_number"] for ti in instances} == {expected_try}


def test_each_iteration_emits_an_asset_event(loops: Loops) -> None:
    """The event of each iteration has the id of that iteration's flow run."""
    assert loops.airflow.wait("blocking", loops.runs["blocking"], MAX_WAIT_SECONDS) == "success"
    found = loops.airflow.call("GET", "assets/events", params={"source_dag_id": "blocking"}).json()
    emitted = [event["extra"]["flow_run_id"] for event in found["asset_events"]]
    assert sorted(emitted) == sorted(run.flow_run_id for run in loops.flow_runs("blocking"))


@pytest.mark.parametrize(
    ("dag_id", "while_it_is"), [("killed_blocking", "running"), ("killed_deferrable", "deferred")]
)
def test_killed_iteration_aborts_its_own_run(loops: Loops, dag_id: str, while_it_is: str) -> None:
    """A task that is marked as failed in the second iteration aborts the flow run of that iteration."""
    first, second = loops.flow_runs(dag_id)
    ti = loops.wait_for_task(dag_id, while_it_is)
    path = f"dags/{dag_id}/dagRuns/{loops.runs[dag_id]}/taskInstances/again.run"
    region = {name: ti[name] for name in ("region_id", "region_index")}
    loops.airflow.call("PATCH", path, json={"new_state": "failed", **region})

    wait_for(lambda: second.state in {"aborting", "aborted"})
    assert first.state == "completed"
    wait_for(
        lambda: (
            f"low run {second.flow_run_id} was aborted" in loops.log_files()
            or f"low run {second.flow_run_id} had already ended" in loops.log_files()
        )
    )


def test_iteration_that_a_clear_replaces(loops: Loops) -> None:
    """A Clear of the first iteration replaces the second one, whose flow run the new second one aborts."""
    loops.wait_for_task("replaced", "deferred")
    _, replaced = loops.flow_runs("replaced")
    first_check = loops.task_instances("replaced", "again.check")[0]
    loops.airflow.call(
        "POST",
        "dags/replaced/clearTaskInstances",
        json={
            "dry_run": False,
            "only_failed": False,
            "dag_run_id": loops.runs["replaced"],
            "task_instance_ids": [first_check["id"]],
            "include_downstream": True,
        },
    )

    assert loops.airflow.wait("replaced", loops.runs["replaced"], MAX_WAIT_SECONDS) == "success"
    first, _, second = loops.flow_runs("replaced")
    assert (first.state, second.state) == ("completed", "completed")
    wait_for(lambda: replaced.state == "aborted")
    regions = [stamp(run)["region_id"] for run in (first, replaced, second)]
    assert regions[0] == regions[1] != regions[2]
    # the trigger that was killed could not find out that its task has no next try
    assert f"(UnknownIterationError), so flow run {replaced.flow_run_id} is left" in loops.log_files()


def test_lesson_succeeds(loops: Loops) -> None:
    """The lesson generates models until one has enough detail, with another seed in each iteration."""
    assert loops.airflow.wait(LESSON, loops.runs[LESSON], MAX_WAIT_SECONDS) == "success", loops.log_files()

    sizes = [path.stat().st_size for path in (loops.airflow.home / "models").rglob("*.glb")]
    assert [size >= 34_000 for size in sorted(sizes)] == [False, False, True]
    assert [run.parameters["seed"] for run in loops.flow_runs(LESSON)] == [0, 1, 2]
