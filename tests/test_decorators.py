"""Tests of `@task.flow` in real DAG runs: return values, modes, retries, mapping and types.

The operator's own behavior is tested in test_operators.py.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_overloads

import airflow.sdk
import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import DAG
from mypy import api as mypy

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.decorators import (
    FlowDecoratedOperator,
    FlowDecorator,
    flow_task,
    task,
    to_arguments,
)
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, FLOW
from tests.support.stored_xcoms import get_rendered_fields
from tests.support.tries import BOTH_MODES, CHAIN_ARGUMENTS, RETRY_ARGUMENTS
from tests.support.versions import needs

ROOT = Path(__file__).parent.parent
LOW = {"quality": "low"}
ARGUMENTS: dict[str, Any] = {"flow": FLOW, "parameters": LOW, **FAST_POLLING}

pytestmark = pytest.mark.emulator(run_seconds=0.3)


def test_decorator_is_registered_with_airflow() -> None:
    """`task.flow` is an attribute of Airflow's own `task`, which is typed here."""
    assert task is airflow.sdk.task
    assert airflow.sdk.task.flow is flow_task


def test_function_returns_inputs_and_task_returns_outputs(emulator: Emulator) -> None:
    """A function of a task's result and the context returns the prompt; the task's dict can be passed on."""
    with DAG("decorated", schedule=None, params={"colour": "red"}) as dag:

        @task
        def thing() -> str:
            return "chair"

        @task.flow(**{**ARGUMENTS, "flow": "{{ 'model_generate_fromprompt' }}"})
        def generate(what: str, size: int, params: dict[str, Any] | None = None) -> str:
            """Write the prompt."""
            return f"A {params and params['colour']} {what} of {size} m"

        @task
        def names(run: dict[str, Any], outputs: list[dict[str, Any]]) -> list[str]:
            return [run["state"], *(output["name"] for output in outputs)]

        run = generate(thing(), size=2)
        names(run, run["outputs"])

    result = run_dag(dag)
    assert result.state == "success", result.log
    (run,) = emulator.runs.values()
    assert [item.data for item in run.inputs] == ["A red chair of 2 m"]
    returned = result.xcoms["generate"]["return_value"]
    assert (returned["flow_run_id"], returned["state"], returned["flow"]) == (
        run.flow_run_id,
        "completed",
        FLOW,
    )
    assert result.xcoms["names"]["return_value"] == [
        "completed",
        *(output["name"] for output in returned["outputs"]),
    ]
    operator = dag.get_task("generate")
    assert (operator.task_type, operator.operator_name) == ("FlowDecoratedOperator", "@task.flow")
    assert operator.doc_md == "Write the prompt."


@BOTH_MODES
def test_function_returns_arguments(emulator: Emulator, tmp_path: Path, *, deferrable: bool) -> None:
    """A dict with `inputs` sets other arguments too, also after a deferral, without a second call."""
    calls: list[int] = []
    with DAG(f"decorated_arguments_{deferrable}", schedule=None) as dag:

        @task.flow(flow="none", deferrable=deferrable, **FAST_POLLING)
        def generate() -> dict[str, Any]:
            calls.append(1)
            return {
                "flow": FLOW,
                "inputs": ["A chair"],
                "parameters": LOW,
                "additional": {"order": 7},
                "flows_conn_id": "generio_default",
                "output_path": str(tmp_path),
            }

        generate()

    result = run_dag(dag)
    assert result.state == "success", result.log
    (run,) = emulator.runs.values()
    assert (run.spec.name, run.explicit_parameters, run.additional["order"]) == (FLOW, LOW, 7)
    (output,) = result.xcoms["generate"]["return_value"]["outputs"]
    assert Path(output["uri"].removeprefix("file://")).parent.parent == tmp_path
    assert calls == [1]
    fields = get_rendered_fields(result.run_id)
    assert (fields["flow"], fields["output_path"]) == (FLOW, str(tmp_path))
    assert fields["parameters"] == LOW
    assert fields["inputs"] == ([] if deferrable else ["A chair"])


def test_function_returns_variables(emulator: Emulator) -> None:
    """A dict without `inputs` has the variables of a PromptChainer flow, also one named like an argument."""
    with DAG("decorated_variables", schedule=None) as dag:

        @task.flow(flow=CHAIN_ARGUMENTS["flow"], flows_conn_id=CHAIN_ARGUMENTS["flows_conn_id"])
        def bare(color: str) -> dict[str, str]:
            return {"color": color, "item": "ball"}

        @task.flow(flow=CHAIN_ARGUMENTS["flow"], flows_conn_id=CHAIN_ARGUMENTS["flows_conn_id"])
        def wrapped(color: str) -> dict[str, Any]:
            return {"inputs": {"color": color, "item": "ball"}}

        bare("red")
        wrapped("blue")

    result = run_dag(dag)
    assert result.state == "success", result.log
    sent = [request.json["variables"] for request in emulator.requests if request.method == "POST"]
    assert sorted(variables["color"] for variables in sent) == ["blue", "red"]
    assert {variables["item"] for variables in sent} == {"ball"}
    assert "text" in {output["name"] for output in result.xcoms["bare"]["return_value"]["outputs"]}
    assert set(result.xcoms["bare"]) == set(result.xcoms["wrapped"]) == {"flow_run_id", "return_value"}


@task
def make_prompt() -> str:
    """Return a prompt, in a task of its own."""
    return "A chair"


def test_missing_flow_is_named(emulator: Emulator) -> None:
    """Without a flow, the error shows the two places for it."""
    with DAG("no_flow", schedule=None) as dag:

        @task.flow
        def run() -> str:
            return "A chair"

        run()
    error = run_dag(dag).errors["run"]
    assert type(error) is FlowInputError
    assert "No flow is set: write @task.flow(flow=...)" in str(error)
    assert emulator.requests == ()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None"),
        (make_prompt, "is the decorated function 'make_prompt' itself; call it, as in make_prompt()"),
        ({"parameters": LOW}, "but without 'inputs'"),
        ({"flow": FLOW, "output_path": "/tmp"}, "'flow', 'output_path', which are names of arguments"),  # noqa: S108  # nothing is written there
        ({"inputs": "A chair", "paramters": LOW}, "did you mean 'parameters'?"),
        ({"inputs": "A chair", "timeout": 5}, "with 'timeout', which cannot be returned as an argument"),
        ({"inputs": "red", "color": "blue"}, "If 'inputs' is a variable of the flow"),
    ],
)
def test_ambiguous_return_value_is_rejected(returned: Any, message: str) -> None:
    """None, arguments without inputs, and unknown arguments are rejected, with what to do."""
    with pytest.raises(FlowInputError, match=r"The function of @task\.flow returned") as caught:
        to_arguments(returned)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "returned",
    [
        "A chair",
        ["a", "b"],
        [],
        {},
        Path("chair.png"),
        {"color": "red"},
        {"data": "x", "additional": 1},
        {"flow": 1, "color": 2},
    ],
)
def test_other_return_values_are_inputs(returned: Any) -> None:
    """Anything but a dict of arguments is passed on as the inputs."""
    assert to_arguments(returned) == {"inputs": returned}


@needs("task state store")
@pytest.mark.parametrize("same", [True, False])
def test_retry_calls_the_function_again(emulator: Emulator, *, same: bool) -> None:
    """A retry resumes the flow run if the function returns the same; otherwise it starts another."""
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    calls: list[int] = []
    with DAG(f"decorated_retry_{same}", schedule=None) as dag:

        @task.flow(**{**ARGUMENTS, **RETRY_ARGUMENTS}, deferrable=True)
        def generate() -> str:
            calls.append(1)
            return "A chair" if same else f"Chair number {len(calls)}"

        generate()

    result = run_dag(dag)
    assert result.state == "success", result.log
    assert len(calls) == 2
    assert emulator.started_count == (1 if same else 2)
    assert result.xcoms["generate"]["return_value"]["state"] == "completed"


def test_function_error_starts_no_run(emulator: Emulator) -> None:
    """An error of the function fails the task, before any request."""
    with DAG("decorated_error", schedule=None) as dag:

        @task.flow(**ARGUMENTS)
        def generate() -> str:
            raise LookupError("no such row")

        generate()

    assert isinstance(run_dag(dag).errors["generate"], LookupError)
    assert emulator.requests == ()


@pytest.mark.parametrize(
    ("error", "tries", "state"),
    [
        (LookupError("gone"), 3, "failed"),
        (AirflowSkipException("not now"), 2, "skipped"),
        pytest.param(None, 2, "failed", marks=needs("retry policies")),
    ],
)
def test_function_error_in_last_try_aborts_earlier_run(
    emulator: Emulator, error: Exception | None, tries: int, state: str
) -> None:
    """If the function raises or returns None in the last try, the run of the first try is aborted."""
    emulator.run_seconds = 3600
    emulator.switches.abort = "instant"
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    calls: list[int] = []
    with DAG(f"decorated_ended_{tries}_{state}", schedule=None) as dag:

        @task.flow(**{**ARGUMENTS, **RETRY_ARGUMENTS, "retries": 2})
        def generate() -> str:
            calls.append(1)
            if len(calls) > 1 and error is not None:
                raise error
            return "A chair" if len(calls) == 1 else None

        generate()

    result = run_dag(dag)
    assert (result.states["generate"], len(calls), emulator.started_count) == (state, tries, 1), result.log
    assert [str(run.state) for run in emulator.runs.values()] == ["aborted"]


@needs("task state store")
def test_earlier_run_is_aborted_over_its_saved_connection(emulator: Emulator) -> None:
    """If only the function names the connection, and raises in the retry, the run is still aborted."""
    emulator.run_seconds = 3600
    emulator.switches.abort = "instant"
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    calls: list[int] = []
    with DAG("decorated_connection", schedule=None) as dag:

        @task.flow(**{**ARGUMENTS, **RETRY_ARGUMENTS}, flows_conn_id="not_there")
        def generate() -> dict[str, Any]:
            calls.append(1)
            if len(calls) > 1:
                raise LookupError("gone")
            return {"inputs": "A chair", "flows_conn_id": "generio_default"}

        generate()

    result = run_dag(dag)
    assert isinstance(result.errors["generate"], LookupError)
    assert (len(calls), emulator.started_count) == (2, 1), result.log
    assert [str(run.state) for run in emulator.runs.values()] == ["aborted"]


def test_xcoms_of_a_deferrable_task_are_small_and_have_no_secrets(emulator: Emulator, tmp_path: Path) -> None:
    """The XComs of a deferrable task have no signature and no file content, and a Path is accepted."""
    with DAG("decorated_deferral", schedule=None, default_args={**ARGUMENTS, "deferrable": True}) as dag:

        @task.flow
        def path() -> dict[str, Any]:
            return {"inputs": "A chair", "output_path": tmp_path}

        @task.flow
        def content() -> list[Any]:
            return [
                {"uri": "data:text/plain;base64," + "QUJD" * 100_000},
                {"uri": "https://u:s3cret@files.invalid/a.png?sig=s3cret"},
            ]

        @task.flow
        def keys() -> dict[str, Any]:
            return {"inputs": "A chair", "parameters": {("a", "b"): 1}}

        path(), content(), keys()

    result = run_dag(dag)
    assert result.states == {"path": "success", "content": "failed", "keys": "failed"}
    (output,) = result.xcoms["path"]["return_value"]["outputs"]
    assert Path(output["uri"].removeprefix("file://")).is_relative_to(tmp_path)
    xcoms = json.dumps(result.xcoms.get("content", {}))
    assert "s3cret" not in xcoms
    assert len(xcoms) < 10_000
    assert len(str(result.errors["content"])) < 10_000
    assert isinstance(result.errors["keys"], FlowInputError)
    assert emulator.started_count == 1


def test_partial_expand_and_override(emulator: Emulator) -> None:
    """The task can be mapped over the function's arguments, partially set, and overridden, also deferred."""
    with DAG("decorated_mapped", schedule=None) as dag:

        @task
        def sizes() -> list[int]:
            return [1, 2]

        @task.flow(**ARGUMENTS, deferrable=True)
        def generate(what: str, size: int) -> str:
            return f"A {what} of {size} m"

        @task
        def states(runs: list[dict[str, Any]]) -> list[str]:
            return [run["state"] for run in runs]

        states(generate.partial(what="chair").expand(size=sizes()))
        generate.override(task_id="other", parameters={"quality": "high"})("table", 3)
        generate.override(task_id="pairs").expand_kwargs([{"what": "lamp", "size": 4}])

    result = run_dag(dag)
    assert result.state == "success", result.log
    qualities = {run.inputs[0].data: run.parameters["quality"] for run in emulator.runs.values()}
    assert qualities == {
        "A chair of 1 m": "low",
        "A chair of 2 m": "low",
        "A table of 3 m": "high",
        "A lamp of 4 m": "low",
    }
    assert result.xcoms["states"]["return_value"] == ["completed", "completed"]


def test_returned_templates_are_rendered_on_demand_only(emulator: Emulator) -> None:
    """Templates in what a function returns are sent unchanged, because its text may be untrusted."""
    with DAG("decorated_templates", schedule=None, params={"what": "chair"}) as dag:

        @task.flow(**ARGUMENTS)
        def plain(text: str) -> str:
            return text

        @task.flow(**ARGUMENTS, render_returned=True)
        def template(size: int) -> dict[str, Any]:  # noqa: ARG001  # the template names it
            return {"inputs": ["A {{ params.what }} of {{ size }} m"]}

        plain(text="{% raw %}{{ params.what }}{% endraw %}")
        template(size=5)

    result = run_dag(dag)
    assert result.state == "success", result.log
    assert {run.inputs[0].data for run in emulator.runs.values()} == {"{{ params.what }}", "A chair of 5 m"}


def test_invalid_use_is_rejected_at_parse_time() -> None:
    """`inputs`, a coroutine, and an unknown argument fail when the DAG file is parsed."""

    async def later() -> str:
        return "A chair"

    with DAG("decorated_invalid", schedule=None):
        with pytest.raises(FlowInputError, match="the function returns the inputs"):
            flow_task(lambda: "A chair", task_id="inputs").override(inputs="x")()
        with pytest.raises(FlowInputError, match="later must be a plain function"):
            flow_task(later)()
        with pytest.raises(TypeError, match="flwo"):
            flow_task(flwo="x")(lambda: "A chair")()


def test_types_have_every_argument() -> None:
    """The decorator's types have the operator's arguments and `render_returned`; `inputs` is rejected."""
    own = set(inspect.signature(RunFlowOperator.__init__).parameters) - {"self", "kwargs"} | {
        "render_returned"
    }
    # a Protocol has no implementation of its overloads, so they are found by name
    call: Any = SimpleNamespace(__module__=FlowDecorator.__module__, __qualname__="FlowDecorator.__call__")
    typed = inspect.signature(get_overloads(call)[1]).parameters
    assert set(typed) == own | {"self", "kwargs"}
    assert typed["inputs"].annotation == "Never"
    extra = set(inspect.signature(FlowDecoratedOperator.__init__).parameters) - own
    assert extra == {"self", "kwargs", "python_callable", "op_args", "op_kwargs"}


TYPED = """
from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_flows.decorators import flow_task, task
from airflow_provider_flows.operators import RunFlowOperator

with DAG("typed", schedule=None):

    @task
    def words() -> list[str]:
        return ["a"]

    @task.flow(flow="f", parameters={"quality": "low"}, retries=2, deferrable=True)
    def generate(word: str) -> list[Path]:
        return [Path(word)]

    @flow_task
    def bare() -> dict[str, str]:
        return {"color": "red"}

    chair = generate("a")
    RunFlowOperator(task_id="next", flow="g", inputs=chair["outputs"]) >> bare()
    generate.override(task_id="again").expand(word=words())
    generate(words()) >> generate.partial(word="b").expand(word=["c"])
    """
WRONG = [
    ("@task.flow(flow=1)", "str"),
    ('@task.flow(flow="f", inputs="x")', "str"),
    ("@task.flow", "int"),
    ('@flow_task(flow="f", deferrable="yes")', "str"),
]


# strict for the DAG file; modules that it does not import are skipped, which saves most of the time of mypy
MYPY = """
[mypy]
strict = true
follow_imports = skip
[mypy-airflow.sdk.*,airflow.providers.common.compat.sdk]
follow_imports = normal
ignore_errors = true
[mypy-airflow_provider_flows.decorators,airflow_provider_flows.operators]
follow_imports = normal
ignore_errors = true

[mypy-airflow.sdk.execution_time.*,airflow.sdk.api.*,airflow.sdk._shared.*]
follow_imports = skip
"""


def test_mypy_checks_a_dag_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mypy --strict` accepts a valid DAG file, infers the task's result, and finds each wrong argument."""
    monkeypatch.chdir(ROOT)
    functions = [
        f"    {line}\n    def wrong{number}() -> {return_type}:\n        raise NotImplementedError"
        for number, (line, return_type) in enumerate(WRONG)
    ]
    file, settings = tmp_path / "typed_dag.py", tmp_path / "mypy.ini"
    file.write_text(TYPED + "\n    reveal_type(chair)\n\n" + "\n\n".join(functions) + "\n")
    settings.write_text(MYPY)
    report, errors, _ = mypy.run(
        ["--config-file", str(settings), "--cache-dir", str(ROOT / ".mypy_cache" / "dag"), str(file)]
    )

    assert not errors
    lines, source = report.splitlines(), file.read_text().splitlines()
    found = {source[int(line.split(":")[1]) - 1].strip() for line in lines if ": error:" in line}
    assert found == {line for line, _ in WRONG}, report
    assert any("Revealed type" in line and "XComArg" in line for line in lines), report
