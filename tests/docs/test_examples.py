"""Tests that every file in example_dags/ is a DAG that runs to success, and leaves behind what its lesson promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.emulator import Emulator
from tests.support.airflow_run import DagResult, load_dags, run_dag
from tests.support.modes import start_external_run
from tools.glb import count_triangles

FOLDER = Path(__file__).parents[2] / "example_dags"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))


def models(folder: Path) -> list[Path]:
    """Give the models in a folder, oldest first, each checked to be whole."""
    found = sorted(folder.rglob("*.glb"), key=lambda path: path.stat().st_mtime_ns)
    for path in found:
        data = path.read_bytes()
        assert data[:4] == b"glTF"
        assert int.from_bytes(data[8:12], "little") == len(data)
    return found


def one_model(_: DagResult, folder: Path) -> None:
    """Expect one whole model, and nothing half-written."""
    (model,) = models(folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == [model]


def one_made_smaller(most: int) -> Callable[[DagResult, Path], None]:
    """Expect two models, the second one with fewer triangles than the first, and no more than asked for."""

    def check(_: DagResult, folder: Path) -> None:
        first, second = map(count_triangles, models(folder))
        assert second < first
        assert second <= most

    return check


def one_for_each_prompt(result: DagResult, folder: Path) -> None:
    """Expect a model for each of the three prompts, and their sizes in the summary."""
    sizes = {f"file://{path}": path.stat().st_size for path in models(folder)}
    assert len(sizes) == 3
    assert result.xcoms["summary"]["return_value"] == sizes


def text_and_picture(result: DagResult, folder: Path) -> None:
    """Expect a text with the variables filled in, and a picture as a whole file."""
    (picture,) = (path for path in folder.rglob("*") if path.is_file())
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = result.xcoms["show"]["return_value"]
    assert shown["image"] == f"file://{picture}"
    assert "red" in shown["text"]
    assert "ball" in shown["text"]


def ordered_sizes(result: DagResult, _: Path) -> None:
    """Expect two models, each with no more triangles than were ordered, of which the first flow run made more."""
    for index, most in enumerate((900, 600)):
        (first,), (second,) = (
            result.xcoms[f"{task}[{index}]"]["outputs"] for task in ("make_model", "make_smaller")
        )
        made, smaller = (
            count_triangles(Path(output["uri"].removeprefix("file://"))) for output in (first, second)
        )
        assert smaller < made
        assert smaller <= most


LEFT_BEHIND: dict[str, Callable[[DagResult, Path], None]] = {
    "decorated_flow": ordered_sizes,
    "flows_demo": one_made_smaller(500),
    "generate_from_prompt": one_model,
    "image_to_optimized_model": one_made_smaller(800),
    "many_prompts": one_for_each_prompt,
    "models_in_a_bucket": one_made_smaller(800),  # in a local folder; test_bucket.py runs it in a bucket
    "promptchainer_texts": text_and_picture,
    "on_finished_run": one_model,
    "wait_for_flow_run": one_model,
}
BEFORE: dict[str, Callable[[Emulator], object]] = {
    "on_finished_run": start_external_run
}  # what others have done by then


@pytest.fixture
def output(flow_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder for the examples' files, beside services whose runs are over at the second look."""
    flow_emulator.run_seconds = 0.05
    monkeypatch.setenv("FLOWS_DEMO_OUTPUT", f"file://{tmp_path}")
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    return tmp_path


def loaded(name: str) -> DAG:
    """Read an example as Airflow does; it holds one DAG, called like its file."""
    dags = load_dags(FOLDER / f"{name}.py")
    assert list(dags) == [name]
    return dags[name]


def test_every_example_is_tested() -> None:
    """Each file in example_dags/ has a test of what it leaves behind."""
    assert sorted(LEFT_BEHIND) == FILES


def test_lessons_are_counted() -> None:
    """Each lesson has a number of its own, and README counts as many."""
    first = [(FOLDER / f"{name}.py").read_text().split(":", 1)[0] for name in FILES]
    assert sorted(first) == [f'"""Lesson {number}' for number in range(1, len(FILES) + 1)]
    counted = ("seven", "eight", "nine", "ten", "eleven", "twelve")[len(FILES) - 7]
    assert f"in {counted} lessons" in (FOLDER.parent / "README.md").read_text()


@pytest.mark.parametrize("name", FILES)
def test_example(flow_emulator: Emulator, output: Path, name: str) -> None:
    """The example is imported without error, explains itself, and runs to success with what it promises in its folder."""
    dag = loaded(name)
    assert dag.doc_md is not None
    assert dag.doc_md.startswith("Lesson")
    BEFORE.get(name, lambda _: None)(flow_emulator)
    flow_emulator.advance(1)

    result = run_dag(dag, conf={"output_path": f"file://{output}"})

    assert result.state == "success", json.dumps(result.states) + result.log
    assert flow_emulator.started_count >= 1
    LEFT_BEHIND[name](result, output)
