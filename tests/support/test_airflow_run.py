"""Tests of the helper that runs DAGs inside the test's process, with tasks of Airflow's standard provider."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import DAG, BaseOperator, task
from airflow.sdk.log import mask_secret

from tests.support.airflow_run import load_dags, run_dag


def test_states_and_xcoms_of_every_task_are_returned() -> None:
    """The result has each task's state, and its XComs as Python values."""
    with DAG("run_plain", schedule=None) as dag:
        first = PythonOperator(task_id="first", python_callable=lambda: {"answer": 42, "parts": ["a", None]})
        PythonOperator(
            task_id="second", python_callable=lambda found: found["parts"][0] + "!", op_args=[first.output]
        )

    result = run_dag(dag)

    assert result.state == "success"
    assert result.states == {"first": "success", "second": "success"}
    assert result.xcoms["first"]["return_value"] == {"answer": 42, "parts": ["a", None]}
    assert result.xcoms["second"]["return_value"] == "a!"
    assert not result.errors


def test_mapped_tasks_are_keyed_by_their_index() -> None:
    """States, XComs and errors of mapped task instances are keyed by their index."""
    with DAG("run_mapped", schedule=None) as dag:

        @task
        def divide(by: int) -> float:
            return 1 / by

        divide.expand(by=[2, 0])

    result = run_dag(dag)

    assert result.states == {"divide[0]": "success", "divide[1]": "failed"}
    assert result.xcoms["divide[0]"]["return_value"] == 0.5
    assert isinstance(result.errors["divide[1]"], ZeroDivisionError)


def test_configuration_reaches_the_tasks() -> None:
    """`conf` is the configuration of the DAG run, as from the trigger form."""
    with DAG("run_conf", schedule=None) as dag:
        PythonOperator(
            task_id="read", python_callable=lambda text: text, op_args=["{{ dag_run.conf['prompt'] }}"]
        )

    assert run_dag(dag, conf={"prompt": "a chair"}).xcoms["read"]["return_value"] == "a chair"


def test_deferred_task_runs_its_trigger_and_resumes() -> None:
    """A deferrable task defers, its trigger runs, and the task succeeds."""
    with DAG("run_deferred", schedule=None) as dag:
        TimeDeltaSensor(task_id="wait", delta=timedelta(seconds=1), deferrable=True)

    result = run_dag(dag)

    assert result.states == {"wait": "success"}
    assert "running trigger in line" in result.log


def test_rescheduled_sensor_is_poked_until_it_is_done(tmp_path: Path) -> None:
    """A sensor in reschedule mode is rescheduled and poked until its condition is true."""
    pokes = tmp_path / "pokes"

    def third_time() -> bool:
        pokes.write_text((pokes.read_text() if pokes.exists() else "") + "x")
        return pokes.read_text() == "xxx"

    with DAG("run_rescheduled", schedule=None) as dag:
        PythonSensor(task_id="wait", python_callable=third_time, mode="reschedule", poke_interval=0.1)

    assert run_dag(dag).states == {"wait": "success"}
    assert pokes.read_text() == "xxx"


def test_exception_of_a_failed_task_is_returned() -> None:
    """The exception of a failed task is returned, and its message is in the log."""

    def fail() -> None:
        raise LookupError("nothing to be found here")

    with DAG("run_failed", schedule=None) as dag:
        PythonOperator(task_id="fail", python_callable=fail)

    result = run_dag(dag)

    assert (result.state, result.states) == ("failed", {"fail": "failed"})
    assert isinstance(result.errors["fail"], LookupError)
    assert "nothing to be found here" in str(result.errors["fail"])
    assert "LookupError: nothing to be found here" in result.log


def test_retry_runs_the_task_again(tmp_path: Path) -> None:
    """A failed try is followed by the next one, and the first one's exception is returned."""
    tried = tmp_path / "tried"

    def second_time() -> str:
        if tried.exists():
            return "done"
        tried.touch()
        raise ConnectionError("first try")

    with DAG("run_retried", schedule=None) as dag:
        PythonOperator(task_id="retry", python_callable=second_time, retries=1, retry_delay=timedelta(0))

    result = run_dag(dag)

    assert result.states == {"retry": "success"}
    assert str(result.errors["retry"]) == "first try"


def test_log_lines_of_both_kinds_are_collected_and_masked() -> None:
    """Lines of operators and of libraries are both in the log, with masked secrets."""

    def talk(**context: object) -> None:
        mask_secret("open-sesame")
        cast("BaseOperator", context["task"]).log.info("the operator says open-sesame")
        logging.getLogger("some.library").warning("the library says %s", "open-sesame")

    with DAG("run_logged", schedule=None) as dag:
        PythonOperator(task_id="talk", python_callable=talk)

    log = run_dag(dag).log

    assert "the operator says ***" in log
    assert "the library says ***" in log
    assert "open-sesame" not in log


def test_dags_are_loaded_from_a_file(tmp_path: Path) -> None:
    """A DAG file is loaded as by Airflow, and its DAG can be run."""
    file = tmp_path / "from_file.py"
    file.write_text(
        "from airflow.sdk import DAG\n"
        "from airflow.providers.standard.operators.empty import EmptyOperator\n"
        "with DAG('run_from_file', schedule=None):\n"
        "    EmptyOperator(task_id='nothing')\n"
    )

    assert run_dag(load_dags(file)["run_from_file"]).states == {"nothing": "success"}


def test_broken_dag_file_raises(tmp_path: Path) -> None:
    """A DAG file that Airflow cannot import raises an error with Airflow's message."""
    file = tmp_path / "broken.py"
    file.write_text("from airflow.sdk import DAG\nDAG('x', schedule=None, nonsense=1)\n")

    with pytest.raises(ImportError, match="nonsense"):
        load_dags(file)
