"""Tests that each file in example_dags/ is a DAG that succeeds and stores what its lesson describes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.emulator import Emulator, Plan
from tests.support.airflow_run import DagResult, load_dags, run_dag
from tests.support.modes import start_external_run
from tests.support.versions import lacks, needs
from tools.glb import count_triangles

FOLDER = Path(__file__).parents[2] / "example_dags"
WORK = "prepare_scene"  # the task of start_now_fetch_later that has no flow run
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))


def models(folder: Path) -> list[Path]:
    """Return the models in a folder, oldest first, after checking that each is complete."""
    found = sorted(folder.rglob("*.glb"), key=lambda path: path.stat().st_mtime_ns)
    for path in found:
        data = path.read_bytes()
        assert data[:4] == b"glTF"
        assert int.from_bytes(data[8:12], "little") == len(data)
    return found


def check_one_model(_: DagResult, folder: Path) -> None:
    """Expect one complete model and no temporary file."""
    (model,) = models(folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == [model]


def check_reduced_model(max_triangles: int) -> Callable[[DagResult, Path], None]:
    """Return a check for two models, of which the second has fewer triangles, and at most the maximum."""

    def check(_: DagResult, folder: Path) -> None:
        first, second = map(count_triangles, models(folder))
        assert second < first
        assert second <= max_triangles

    return check


def check_model_for_each_prompt(result: DagResult, folder: Path) -> None:
    """Expect a model for each of the three prompts, and the sizes in the summary."""
    sizes = {f"file://{path}": path.stat().st_size for path in models(folder)}
    assert len(sizes) == 3
    assert result.xcoms["summary"]["return_value"] == sizes


def check_text_and_image(result: DagResult, folder: Path) -> None:
    """Expect a text with the values of the variables, and an image file."""
    (image,) = (path for path in folder.rglob("*") if path.is_file())
    assert image.read_bytes().startswith(b"\x89PNG")
    returned = result.xcoms["show"]["return_value"]
    assert returned["image"] == f"file://{image}"
    assert "red" in returned["text"]
    assert "ball" in returned["text"]


def check_deleted_run(result: DagResult, folder: Path) -> None:
    """Expect one model, although the run was deleted at the service before the teardown."""
    check_one_model(result, folder)
    states = {name: xcoms["return_value"]["state"] for name, xcoms in result.xcoms.items() if name != WORK}
    assert states.pop("start") in {"starting", "running", "completed"}
    assert states == {"fetch": "completed", "delete": "completed", "abort": "unknown"}


def check_requested_sizes(result: DagResult, _: Path) -> None:
    """Expect two reduced models, each smaller than its original and with at most the requested triangles."""
    for index, max_triangles in enumerate((900, 600)):
        (first,), (second,) = (
            result.xcoms[f"{task}[{index}]"]["return_value"]["outputs"]
            for task in ("make_model", "make_smaller")
        )
        original, reduced = (
            count_triangles(Path(output["uri"].removeprefix("file://"))) for output in (first, second)
        )
        assert reduced < original
        assert reduced <= max_triangles


def check_loop(_: DagResult, folder: Path) -> None:
    """Expect a model of each seed up to the first good one."""
    assert [path.stat().st_size >= 34_000 for path in models(folder)] == [False, False, True]


def check_batches(result: DagResult, folder: Path) -> None:
    """Expect 38 models in the first batch, and in the second one those of the two items that failed."""
    counts = {
        name: tuple(result.xcoms[name]["return_value"][count] for count in ("total", "completed", "failed"))
        for name in ("make_models", "make_failed_models")
    }
    assert counts == {"make_models": (40, 38, 2), "make_failed_models": (2, 2, 0)}
    assert len(models(folder / "first")) == 38
    assert len(models(folder / "second")) == 2
    assert result.xcoms["summary"]["return_value"] == {"completed": 40, "failed": 2}


CHECKS: dict[str, Callable[[DagResult, Path], None]] = {
    "batch_of_prompts": check_batches,
    "decorated_flow": check_requested_sizes,
    "flows_demo": check_reduced_model(500),
    "generate_from_prompt": check_one_model,
    "generate_until_good": check_loop,
    "image_to_optimized_model": check_reduced_model(800),
    "many_prompts": check_model_for_each_prompt,
    "models_in_a_bucket": check_reduced_model(800),  # a local folder; test_bucket.py uses a bucket
    "promptchainer_texts": check_text_and_image,
    "on_finished_run": check_one_model,
    "start_now_fetch_later": check_deleted_run,
    "wait_for_flow_run": check_one_model,
}
LOOPS = "generate_until_good"  # the example that defines a DAG only if Airflow has task loops
# What has happened at the service before the DAG runs.
PREPARATIONS: dict[str, Callable[[Emulator], object]] = {
    "on_finished_run": start_external_run,
    "batch_of_prompts": lambda emulator: emulator.add_plan(Plan("failed", error="No legs", times=2)),
}


@pytest.fixture
def output(flow_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for the examples' files; flow runs are final at the second poll."""
    flow_emulator.run_seconds = 0.05
    monkeypatch.setenv("FLOWS_DEMO_OUTPUT", f"file://{tmp_path}")
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    return tmp_path


def load_example(name: str) -> DAG:
    """Load an example as Airflow does; it has one DAG, named after its file."""
    dags = load_dags(FOLDER / f"{name}.py")
    assert list(dags) == [name]
    return dags[name]


def test_every_example_is_tested() -> None:
    """Each file in example_dags/ has a check of its results."""
    assert sorted(CHECKS) == FILES


def test_lessons_are_numbered() -> None:
    """The lessons are numbered, and the README has their count."""
    first = [(FOLDER / f"{name}.py").read_text().split(":", 1)[0] for name in FILES]
    assert set(first) == {f'"""Lesson {number}' for number in range(1, len(FILES) + 1)}
    counted = ("seven", "eight", "nine", "ten", "eleven", "twelve")[len(FILES) - 7]
    assert f"in {counted} lessons" in (FOLDER.parent / "README.md").read_text()


@lacks("task loops")
def test_lesson_of_loops_without_loops() -> None:
    """The example with a task loop can be imported on an Airflow without task loops, and defines no DAG."""
    assert load_dags(FOLDER / f"{LOOPS}.py") == {}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs("task loops") if name == LOOPS else ()) for name in FILES]
)
def test_example_succeeds(flow_emulator: Emulator, output: Path, name: str) -> None:
    """The example is imported without errors, has a description, succeeds, and stores its files."""
    dag = load_example(name)
    assert dag.doc_md is not None
    assert dag.doc_md.startswith("Lesson")
    PREPARATIONS.get(name, lambda _: None)(flow_emulator)
    flow_emulator.advance(1)

    result = run_dag(dag, conf={"output_path": f"file://{output}"})

    assert result.state == "success", json.dumps(result.states) + result.log
    assert flow_emulator.started_count >= 1
    CHECKS[name](result, output)
