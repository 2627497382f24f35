"""Tests that a template that renders to no value or to a collection is rejected before a run is paid for.

Each test runs a DAG, because Airflow renders the templates.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator

from airflow_provider_flows.batch.trigger import FlowBatchTrigger
from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound
from airflow_provider_flows.decorators import task
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import (
    AbortFlowRunOperator,
    DeleteFlowRunOperator,
    FetchFlowRunOperator,
    RunFlowBatchOperator,
    RunFlowOperator,
)
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.triggers import FlowRunTrigger
from airflow_provider_flows.worker.template_check import NAME_ARGUMENTS
from tests.support.airflow_run import DagResult, run_dag
from tests.support.modes import FAST_POLLING, FLOW
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS

PARAMS: dict[str, Any] = {
    "prompts": ["A teapot", "A boat"],
    "spec": {"what": "gnome"},
    "blank": "",
    "word": "None",
    "listed": "['A teapot', 'A boat']",
}
NOTHING = "{{ ti.xcom_pull('no_such_task') }}"

# each problem: the template, and how the error describes its result
PROBLEMS = {
    "nothing": (NOTHING, "rendered to None: check that its variables and XComs exist"),
    "the word": ("{{ params.word }}", "rendered to None"),
    "list": (
        "{{ params.prompts }}",
        "rendered to the text of a list: to pass the list itself, set render_template_as",
    ),
    "empty list": ("{{ [] }}", "rendered to the text of a list"),
    "dict": (
        "{{ params.spec }}",
        "rendered to the text of a dict: to pass the dict itself, set render_template_as",
    ),
    "all params": (" {{ params }} ", "rendered to the text of a dict"),
    "empty": ("{{ params.blank }}", "rendered to an empty text"),
    "block": ("{% if params.blank %}A chair{% endif %}", "rendered to an empty text"),
    "part": ("A chair for " + NOTHING, "rendered to None"),
    "undefined text": ("{{ none | upper }}", "rendered to NONE: check that its variables and XComs exist"),
    "null": ("{{ none | tojson }}", "rendered to null"),
    "no number": ("{{ 'nan' | float }}", "rendered to nan"),
    "empty JSON list": ("{{ [] | tojson }}", "rendered to the text of a list"),
    "empty JSON dict": ("{{ {} | tojson }}", "rendered to the text of a dict"),
    "list as text": ("{{ params.prompts | string }}", "rendered to the text of a list"),
    "dict as text": ("{{ params.spec | trim }}", "rendered to the text of a dict"),
    "text of another task": ("{{ params.listed }}", "rendered to the text of a list"),
}
# each templated argument: the arguments with a template in place, and its name in the error
ARGUMENTS: dict[str, tuple[Any, str]] = {
    "flow": (lambda template: {"flow": template}, "flow: "),
    "inputs": (lambda template: {"inputs": template}, "inputs[0]: "),
    "item": (lambda template: {"inputs": ["A chair", template]}, "inputs[1]: "),
    "uri": (lambda template: {"inputs": {"uri": template}}, "inputs[0]['uri']: "),
    "variable": (
        lambda template: {**CHAIN_ARGUMENTS, "inputs": {"color": "red", "item": template}},
        "inputs['item']: ",
    ),
    "flows_conn_id": (lambda template: {"flows_conn_id": template}, "flows_conn_id: "),
    "input_conn_id": (lambda template: {"input_conn_id": template}, "input_conn_id: "),
    "output_path": (lambda template: {"output_path": template}, "output_path: "),
    "output_conn_id": (lambda template: {"output_conn_id": template}, "output_conn_id: "),
}

pytestmark = pytest.mark.emulator(run_seconds=0)


def run_tasks(dag_id: str, tasks: dict[str, dict[str, Any]], **dag_arguments: Any) -> DagResult:
    """Run a task with each of these arguments."""
    with DAG(dag_id, schedule=None, params=PARAMS, **dag_arguments) as dag:
        for name, arguments in tasks.items():
            RunFlowOperator(
                task_id=name.replace(" ", "_"), **{**CHAIR_ARGUMENTS, **FAST_POLLING, **arguments}
            )
    return run_dag(dag)


def assert_rejected(result: DagResult, name: str, *parts: str) -> None:
    """Assert that a task's error is a FlowInputError with these parts."""
    error = result.errors[name.replace(" ", "_")]
    assert type(error) is FlowInputError, (name, error)
    for part in parts:
        assert part in str(error), (name, part, str(error))


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_problem_in_any_argument_is_rejected(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    """Each problem in each argument is an error with the argument, the expression, result and remedy."""
    monkeypatch.chdir(tmp_path)
    arguments, where = ARGUMENTS[argument]
    result = run_tasks(
        f"templates_{argument}", {name: arguments(template) for name, (template, _) in PROBLEMS.items()}
    )
    for name, (template, result_text) in PROBLEMS.items():
        expression = template.strip().removeprefix("A chair for ")
        assert_rejected(
            result, name, where, repr(expression), result_text, ".output", "No flow run was created"
        )
    assert emulator.runs == {}
    assert not any(tmp_path.iterdir())  # a folder called `None` has been seen


def test_path_and_name_quote_no_list(emulator: Emulator, tmp_path: Path) -> None:
    """A list in the middle of a path, a URI or a name is rejected, because only a prompt may quote one."""
    path = str(tmp_path) + "/{{ params.prompts }}/x"
    tasks = {argument: ARGUMENTS[argument][0](path) for argument in ("flow", "uri", "output_path")}
    result = run_tasks("templates_in_paths", tasks)
    for argument in tasks:
        assert_rejected(result, argument, ARGUMENTS[argument][1], "rendered to the text of a list")
    assert emulator.runs == {}
    assert not any(tmp_path.iterdir())


def test_problem_in_a_parameter_is_rejected(emulator: Emulator) -> None:
    """A parameter is never the text of a missing value or of a collection; it may be empty, or any word."""
    names = ("nothing", "list", "dict")
    tasks = {name: {"parameters": {"quality": PROBLEMS[name][0]}, "validate": False} for name in names}
    result = run_tasks("templates_parameters", tasks)
    for name in names:
        assert_rejected(result, name, "parameters['quality']: ", PROBLEMS[name][1])
    assert emulator.runs == {}

    texts = {"style": "{{ params.blank }}", "label": "{{ params.word }}"}
    run_tasks("templates_parameter_texts", {"run": {"parameters": texts, "validate": False}})
    (created,) = (one.json for one in emulator.requests if (one.method, one.path[-6:]) == ("POST", "/flows"))
    assert created["parameters"] == {"style": "", "label": "None"}


def test_one_error_has_template_problems_and_all_others(emulator: Emulator) -> None:
    """Problems of templates are listed with all other problems of a task, each once."""
    arguments = {
        "inputs": [NOTHING, {"uri": "file:///no/such.png"}, "{{ params.blank }}"],
        "parameters": {"qualty": "low"},
        "output_path": NOTHING,
    }
    result = run_tasks("templates_and_problems", {"run": arguments})
    parts = ("inputs[0]: ", "inputs[1] names a file that cannot", "inputs[2]: ", "'qualty'", "output_path: ")
    assert_rejected(result, "run", *parts)
    assert str(result.errors["run"]).count("inputs[2]") == 1
    assert emulator.runs == {}


def test_texts_that_are_meant_are_sent(emulator: Emulator) -> None:
    """A collection in a longer text, JSON, a joined list, a word in a literal, and any `data` are sent."""
    texts = {
        "From {{ params.prompts }}": "From ['A teapot', 'A boat']",
        "{{ params.prompts | tojson }}": '["A teapot", "A boat"]',
        "{{ params.prompts | join(' and ') }}": "A teapot and A boat",
        "A {{ params.word }} sign": "A None sign",
        "{% set unused = params.get('x') %}A chair": "A chair",
        "None": "None",
        "[]": "[]",
    }
    meant = [*texts, {"data": NOTHING, "additional": {"conf": "{{ params.spec }}"}}]
    result = run_tasks(
        "templates_texts", {"run": {"inputs": meant, "additional": {"of": "{{ params.prompts }}"}}}
    )

    assert result.state == "success", result.log
    (run,) = emulator.runs.values()
    assert [item.media.content.decode() for item in run.inputs] == [*texts.values(), "None"]


def test_native_rendering_passes_the_values(emulator: Emulator) -> None:
    """With render_template_as_native_obj a list is a list, a None parameter is the flow's default."""
    tasks = {
        "run": {"inputs": "{{ params.prompts }}", "parameters": {"quality": NOTHING}},
        "none": {"inputs": NOTHING},
    }
    result = run_tasks("templates_native", tasks, render_template_as_native_obj=True)

    assert result.states["run"] == "success", result.log
    (run,) = emulator.runs.values()
    assert [item.media.content.decode() for item in run.inputs] == PARAMS["prompts"]
    assert_rejected(result, "none", "inputs must hold at least one prompt or file")


TEXTS_OF_VALUES = [
    "{'uri': 'file:///etc/hostname'}",
    "[{'uri': '/etc/hostname'}]",
    "{'a': 1}",
    "42",
    "('x',)",
]


@pytest.mark.parametrize("form", ["{}", " {} ", "[{}]", "{{'data': {}}}", "[{{'data': {}}}]"])
def test_native_rendering_keeps_a_text_a_text(emulator: Emulator, form: str) -> None:
    """A text in a parameter stays a text, and never becomes a dict that names a file, or a number."""
    tasks: dict[str, dict[str, Any]] = {
        f"t{number}": {"inputs": ast.literal_eval(form.format(repr(f"{{{{ params.texts[{number}] }}}}")))}
        for number in range(len(TEXTS_OF_VALUES))
    }
    with DAG(
        "templates_native_texts",
        schedule=None,
        params={"texts": TEXTS_OF_VALUES},
        render_template_as_native_obj=True,
    ) as dag:
        for task_id, arguments in tasks.items():
            RunFlowOperator(task_id=task_id, **{**CHAIR_ARGUMENTS, **arguments})
    result = run_dag(dag)

    sent = {item.media.content.decode() for run in emulator.runs.values() for item in run.inputs}
    assert sent <= set(TEXTS_OF_VALUES)
    assert "42" in sent
    for task_id, error in result.errors.items():
        assert "rendered to the text of" in str(error), task_id


# texts that Python reads as values
SCALAR_TEXTS = ["12", "-7", "007", "1e3", "1_000", "0x10", "1.50", "True", "'quoted'", "b'12'", "..."]
# each form of a template, and what it renders to with the text as params.text
FORMS = {
    "{text}": "{text}",
    "{{{{ params.text }}}}": "{text}",
    "{{{{ params.text | trim }}}}": "{text}",
    "{{{{ params.text }}}}0": "{text}0",
    "{{{{ params.text }}}}{{{{ params.number }}}}": "{text}12",
    "{{% if params.number %}}{text}{{% endif %}}": "{text}",
}
# each templated field, and where a text is in it
FIELDS: dict[str, tuple[Any, ...]] = {
    **{f"operator, {name}": (RunFlowOperator, name) for name in RunFlowOperator.template_fields},
    **{f"sensor, {name}": (FlowRunSensor, name) for name in FlowRunSensor.template_fields},
    "operator, item of inputs": (RunFlowOperator, "inputs", 1),
    "operator, data": (RunFlowOperator, "inputs", 0, "data"),
    "operator, uri": (RunFlowOperator, "inputs", 0, "uri"),
    "operator, variable": (RunFlowOperator, "inputs", "item"),
    "operator, parameter": (RunFlowOperator, "parameters", "style"),
    "operator, key of additional": (RunFlowOperator, "additional", "order"),
    "decorator, op_args": (None, "op_args", 0),
    "decorator, op_kwargs": (None, "op_kwargs", "prompt"),
}


def return_prompt(prompt: Any) -> Any:
    """Return what was passed."""
    return prompt


def render_field(field: str, template: str, params: dict[str, Any], *, native: bool) -> Any:
    """Return what Airflow renders a template to at the place of a field."""
    operator, name, *places = FIELDS[field]
    value: Any = template
    for place in reversed(places):
        value = {place: value} if isinstance(place, str) else [*[""] * place, value]
    with DAG("templates_rendered", schedule=None, render_template_as_native_obj=native):
        if operator is None:
            decorated = task.flow(flow=FLOW)(return_prompt)
            rendered = decorated(value[0]) if name == "op_args" else decorated(**value)
            one = rendered.operator
        else:
            required = {"flow_run_id": "a"} if operator is FlowRunSensor else {"flow": FLOW}
            one = operator(task_id="one", **{**required, name: value})
    one.render_template_fields({"params": params})
    rendered_value = getattr(one, name)
    for place in places:
        rendered_value = rendered_value[place]
    return rendered_value


@pytest.mark.parametrize("field", FIELDS)
def test_text_is_the_same_text_in_native_rendering(field: str) -> None:
    """A text in any templated field is the same with and without native rendering, whatever it spells."""
    for text in SCALAR_TEXTS:
        for form, expected in FORMS.items():
            template, params = form.format(text=text), {"text": text, "number": 12}
            plain = render_field(field, template, params, native=False)
            assert plain == expected.format(text=text), template
            native = render_field(field, template, params, native=True)
            assert (type(native), native) == (str, plain), template


NAME_FIELDS = [field for field, (_, name, *_) in FIELDS.items() if name in NAME_ARGUMENTS]
VALUES: dict[str, Any] = {
    "number": 12,
    "fraction": 1.5,
    "flag": True,
    "nothing": None,
    "things": ["a", 1],
    "spec": {"a": 1},
}


@pytest.mark.parametrize("field", FIELDS)
def test_native_rendering_passes_a_value_as_it_is(field: str) -> None:
    """A value that is no text is passed as it is; a number as a name, an id or a path is its text."""
    for name, value in VALUES.items():
        native = render_field(field, f"{{{{ params.{name} }}}}", VALUES, native=True)
        is_text = field in NAME_FIELDS and name in {"number", "fraction"}
        assert native == (str(value) if is_text else value), name


WRITTEN: dict[str, tuple[str, Any]] = {
    "a list": ("['{{ params.text }}', 'A boat']", ["12", "A boat"]),
    "a dict": ("{'data': '{{ params.text }}'}", {"data": "12"}),
    "a literal list": ("['A chair']", ["A chair"]),
    "a constant": ("{{ ['A chair'] }}", ["A chair"]),
    "a block": ("{% if params.text %}['A chair']{% endif %}", ["A chair"]),
    "a number in JSON": ("{{ 12 | tojson }}", 12),
    "a list in JSON": ("{{ params.things | tojson }}", ["a", 1]),
    "no text": ("{% if params.nothing %}A chair{% endif %}", None),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_native_rendering_parses_what_the_template_writes(written: str) -> None:
    """A collection that the template itself writes, and JSON of the filter `tojson`, are parsed."""
    template, expected = WRITTEN[written]
    params = {"text": "12", "things": ["a", 1], "nothing": False}
    assert render_field("operator, inputs", template, params, native=True) == expected


def test_prompt_and_id_of_digits_are_accepted_in_native_rendering(emulator: Emulator) -> None:
    """A prompt and a flow run's id of digits are sent as they are, from a text, a template or a function."""
    with DAG(
        "templates_native_digits",
        schedule=None,
        params={"prompt": "12", "flow_run_id": "123456789012345678901234"},
        render_template_as_native_obj=True,
    ) as dag:
        RunFlowOperator(task_id="text", **{**CHAIR_ARGUMENTS, "inputs": "12"})
        RunFlowOperator(task_id="template", **{**CHAIR_ARGUMENTS, "inputs": "{{ params.prompt }}"})
        decorator = {name: value for name, value in CHAIR_ARGUMENTS.items() if name != "inputs"}
        task.flow(**decorator)(return_prompt).override(task_id="function")("12")
        FlowRunSensor(task_id="sensor", flow_run_id="{{ params.flow_run_id }}", mode="poke", **FAST_POLLING)
    result = run_dag(dag)

    assert {name: state for name, state in result.states.items() if name != "sensor"} == dict.fromkeys(
        ("text", "template", "function"), "success"
    )
    prompts = [item.media.content.decode() for run in emulator.runs.values() for item in run.inputs]
    assert prompts == ["12"] * 3
    assert type(result.errors["sensor"]) is FlowNotFound
    assert "123456789012345678901234" in str(result.errors["sensor"])


def test_mapped_task_rejects_its_own_template_only(emulator: Emulator) -> None:
    """Mapped over values, a task instance rejects its own template; the others run."""
    with DAG("templates_mapped", schedule=None, params=PARAMS) as dag:
        RunFlowOperator.partial(task_id="run", flow=FLOW, **FAST_POLLING).expand(
            inputs=["A chair", "{{ params.prompts }}", "{{ params.prompts[1] }}"]
        )
    result = run_dag(dag)

    assert_rejected(result, "run[1]", "inputs[0]: ", "with expand")
    sent = [run.inputs[0].media.content.decode() for run in emulator.runs.values()]
    assert sorted(sent) == ["A boat", "A chair"]


def test_sensor_checks_templates(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sensor rejects a problem in each of its templated arguments before it polls."""
    monkeypatch.chdir(tmp_path)
    with DAG("templates_sensor", schedule=None, params=PARAMS) as dag:
        for argument in FlowRunSensor.template_fields:
            given = {"flow_run_id": "1" * 24, "mode": "poke", argument: NOTHING}
            FlowRunSensor(task_id=argument, **given)
    result = run_dag(dag)

    for argument in FlowRunSensor.template_fields:
        assert_rejected(result, argument, f"{argument}: ", repr(NOTHING), "rendered to None")
    assert emulator.requests == ()
    assert not any(tmp_path.iterdir())


def test_function_of_a_task_is_checked_if_it_returns_templates(emulator: Emulator) -> None:
    """@task.flow checks what is rendered: its own templates, and returned ones if told to."""
    with DAG("templates_function", schedule=None, params=PARAMS) as dag:

        @task.flow(flow=FLOW, render_returned=True, **FAST_POLLING)
        def rendered() -> list[str]:
            return ["A chair", NOTHING]

        @task.flow(flow=FLOW, **FAST_POLLING)
        def plain() -> list[str]:
            return ["A chair", "None"]

        @task.flow(flow=FLOW, output_path=NOTHING, **FAST_POLLING)
        def replaced() -> dict[str, Any]:
            return {"inputs": "A lamp", "output_path": None}

        @task.flow(flow=NOTHING, **FAST_POLLING)
        def of_decorator() -> str:
            return "A chair"

        for one in (rendered, plain, replaced, of_decorator):
            one()
    result = run_dag(dag)

    assert_rejected(result, "rendered", "inputs[1]: ", repr(NOTHING))
    assert_rejected(result, "of_decorator", "flow: ", repr(NOTHING))
    assert (result.states["plain"], result.states["replaced"]) == ("success", "success"), result.log
    assert len(emulator.runs) == 2


def test_function_that_returns_a_problem_of_its_arguments_is_rejected(emulator: Emulator) -> None:
    """A problem in an argument of the function is rejected where the function returns it, and only there."""
    with DAG("templates_function_arguments", schedule=None, params=PARAMS) as dag:

        @task.flow(flow=FLOW, **FAST_POLLING)
        def returned(prompt: str) -> list[str]:
            return ["A chair", prompt]

        @task.flow(flow=FLOW, **FAST_POLLING)
        def part(prompt: str) -> str:
            return f"A {prompt}"

        @task.flow(flow=FLOW, **FAST_POLLING)
        def handled(prompt: str) -> str:
            return "A chair" if prompt in {"", "None"} else "None"

        returned("{{ params.prompts }}")
        returned.override(task_id="by_name")(prompt=NOTHING)
        part(NOTHING)
        handled(NOTHING)
    result = run_dag(dag)

    assert_rejected(
        result, "returned", "inputs[1]: op_args[0] of the function: ", "rendered to the text of a list"
    )
    assert_rejected(result, "by_name", "inputs[1]: op_kwargs['prompt'] of the function: ", "rendered to None")
    assert_rejected(result, "part", "inputs[0]: op_args[0] of the function: ", "rendered to None")
    assert result.states["handled"] == "success", result.log
    assert len(emulator.runs) == 1


@task(task_id="decorated")
def prompt() -> str:
    """Return a prompt."""
    return "A chair"


RUN_RESULT: dict[str, Any] = {"flow_run_id": "0" * 24, "flow": "f", "outputs": []}
MISPLACED_TASKS: dict[str, tuple[type[BaseOperator], str, Callable[[Any], Any], str]] = {
    "input": (
        RunFlowOperator,
        "inputs",
        lambda task: task,
        "inputs is the task 'first' itself; write .output",
    ),
    "one of the inputs": (RunFlowOperator, "inputs", lambda task: ["A chair", task], "inputs[1] is the task"),
    "a variable": (RunFlowOperator, "inputs", lambda task: {"color": task}, "inputs['color'] is the task"),
    "a parameter": (
        RunFlowOperator,
        "parameters",
        lambda task: {"seed": task},
        "parameters['seed'] is the task 'first' itself; to pass a value of the task's result, write \"{{ ti.",
    ),
    "metadata": (RunFlowOperator, "additional", lambda task: {"n": [task]}, "additional['n'][0] is the task"),
    "the flow": (
        RunFlowOperator,
        "flow",
        lambda task: task,
        "result, write \"{{ ti.xcom_pull('first')['flow'] }}\"",
    ),
    "the folder": (
        RunFlowOperator,
        "output_path",
        lambda task: task,
        "output_path is the task 'first' itself",
    ),
    "a function": (
        RunFlowOperator,
        "inputs",
        lambda _: [prompt],
        "inputs[0] is the decorated function 'prompt' itself; call it, as in prompt()",
    ),
    **{
        f"the flow run of {operator.__name__}": (
            operator,
            "flow_run_id",
            lambda task: task,
            'to pass a value of the task\'s result, write first.output["flow_run_id"]',
        )
        for operator in (FlowRunSensor, FetchFlowRunOperator, AbortFlowRunOperator, DeleteFlowRunOperator)
    },
}


@pytest.mark.parametrize("case", MISPLACED_TASKS)
def test_task_in_place_of_its_result_is_rejected_at_parse_time(case: str) -> None:
    """A task in any argument is an error when the DAG is parsed, before any task is paid for."""
    operator, argument, place, message = MISPLACED_TASKS[case]
    required = {"flow": "f"} if operator is RunFlowOperator else {"flow_run_id": "0" * 24}
    with DAG("tasks", schedule=None):
        first = EmptyOperator(task_id="first")
        with pytest.raises(FlowInputError) as caught:
            operator(task_id="run", **{**required, argument: place(first)})
    assert message in str(caught.value)


WRONG_RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "the flow": (
        {"flow": RUN_RESULT},
        "flow is all that a task returned; write \"{{ ti.xcom_pull('first')['flow'] }}\"",
    ),
    "a number as the flow": ({"flow": 5}, "flow must be the name or id of a flow, not int"),
    "a function": ({"inputs": prompt}, "inputs[0] is the decorated function 'prompt' itself; call it"),
    "the folder": ({"output_path": RUN_RESULT}, "output_path must be an absolute path or a URI, not dict"),
    "a number as the folder": ({"output_path": 5}, "output_path must be an absolute path or a URI, not int"),
    "a variable": (
        {**CHAIN_ARGUMENTS, "inputs": {"color": RUN_RESULT, "item": "ball"}},
        "is all that a task returned; pass one text of it, such as \"{{ ti.xcom_pull('first')['outputs'][0]",
    ),
}


@pytest.mark.parametrize("case", WRONG_RESULTS)
def test_wrong_part_of_a_result_is_rejected_before_a_run_is_created(emulator: Emulator, case: str) -> None:
    """What a mapped task, or a function, returns is known at run time: the error shows what to write."""
    arguments, message = WRONG_RESULTS[case]
    # as a mapped task gets its arguments: they are not known when the DAG is parsed
    operator = RunFlowOperator(task_id="t", **{**CHAIR_ARGUMENTS, **FAST_POLLING})
    for name, value in arguments.items():
        setattr(operator, name, value)
    with pytest.raises(FlowInputError) as caught:
        operator.execute(context(Store()))
    assert message in str(caught.value)
    assert "'flow_run_id':" not in str(caught.value)
    assert emulator.runs == {}


class SubclassOperator(RunFlowOperator):
    """An operator of a user, which may push XComs of its own."""


@task.flow(flow="f")
def decorated() -> str:
    """Return a prompt; such a function may push XComs of its own."""
    return "A chair"


SOURCES: dict[str, Callable[[], Any]] = {
    "operator": lambda: RunFlowOperator(task_id="first", flow="f").output,
    "mapped operator": lambda: (
        RunFlowOperator.partial(task_id="first", flow="f").expand(inputs=["a", "b"]).output
    ),
    "sensor": lambda: FlowRunSensor(task_id="first", flow_run_id="0" * 24).output,
    "fetch": lambda: FetchFlowRunOperator(task_id="first", flow_run_id="0" * 24).output,
    "abort": lambda: AbortFlowRunOperator(task_id="first", flow_run_id="0" * 24).output,
    "batch": lambda: RunFlowBatchOperator(task_id="first", flow="f", items=[], output_path="/x").output,
    "subclass": lambda: SubclassOperator(task_id="first", flow="f").output,
    "decorator": decorated,
    "all keys": lambda: RunFlowOperator(task_id="first", flow="f", multiple_outputs=True).output,
    "another operator": lambda: EmptyOperator(task_id="first").output,
}
# each source, and of some keys those that it does not push
MISSING_KEYS = {
    **{one: {"output", "state"} for one in ("operator", "mapped operator", "sensor", "fetch")},
    "abort": {"output", "outputs", "state"},
    "batch": {"output", "outputs", "state", "flow_run_id"},
    "subclass": {"output"},
    "decorator": {"output"},
    "all keys": set(),
    "another operator": set(),
}


@pytest.mark.parametrize("source", SOURCES)
def test_result_that_no_task_pushes_is_rejected_at_parse_time(source: str) -> None:
    """A key of `.output` that a task does not push is an error before that task is paid for."""
    rejected = {}
    for key in ("outputs", "flow_run_id", "return_value", "output", "state"):
        for arguments in ({"inputs": "x"}, {"inputs": ["x"]}, {"parameters": {"seed": "x"}}):
            with DAG("xcoms", schedule=None):
                xcom = SOURCES[source]()[key]
                ((name, form),) = arguments.items()
                value = xcom if form == "x" else [xcom] if isinstance(form, list) else {"seed": xcom}
                try:
                    RunFlowOperator(task_id="run", flow="f", **{name: value})
                except FlowInputError as error:
                    rejected[key] = str(error)
    assert rejected.keys() == MISSING_KEYS[source]
    assert all(f".output[{key!r}] of the task" in message for key, message in rejected.items())


def find_boolean_arguments() -> Iterator[tuple[Callable[..., Any], str]]:
    """Yield each Boolean argument of each class and decorator, with a function that creates one of it."""
    required: dict[Any, dict[str, Any]] = {
        RunFlowOperator: {"task_id": "t", "flow": "f"},
        RunFlowBatchOperator: {"task_id": "t", "flow": "f", "items": [], "output_path": "/x"},
        **{
            operator: {"task_id": "t", "flow_run_id": "0" * 24}
            for operator in (FlowRunSensor, FetchFlowRunOperator, AbortFlowRunOperator, DeleteFlowRunOperator)
        },
        FlowRunTrigger: {"flows_conn_id": "c", "flow_run_id": "0" * 24},
        FlowBatchTrigger: {"flows_conn_id": "c", "flow_run_ids": []},
    }
    for kind, arguments in required.items():
        for name, one in inspect.signature(kind.__init__).parameters.items():
            if isinstance(one.default, bool) and name not in {"is_stored", "exponential_backoff", "reuse"}:
                yield partial(kind, **arguments), name
    for name in ("deferrable", "render_returned", "durable"):
        yield lambda **more: task.flow(flow="f", **more)(prompt.function)(), name
    for name in ("soft_fail", "never_fail"):  # Airflow's, which the sensor reads
        yield partial(FlowRunSensor, **required[FlowRunSensor]), name


BOOLEAN_ARGUMENTS = list(find_boolean_arguments())


@pytest.mark.parametrize("value", ["yes", "False", 1, None])
@pytest.mark.parametrize(("create", "name"), BOOLEAN_ARGUMENTS)
def test_boolean_arguments_take_only_booleans(create: Callable[..., Any], name: str, value: object) -> None:
    """A text or a number is an error when the DAG is parsed: "no" would count as True."""
    with DAG("booleans", schedule=None), pytest.raises(FlowInputError) as caught:
        create(**{name: value})
    assert re.match(rf"{name} must be True(,| or) False", str(caught.value))
    assert repr(value) in str(caught.value)


def test_all_classes_have_boolean_arguments() -> None:
    """The table above finds the arguments."""
    names = {name for _, name in BOOLEAN_ARGUMENTS}
    assert names >= {
        "deferrable",
        "validate",
        "abort_active",
        "silent_fail",
        "wait_for_completion",
        "durable",
    }
    assert len(BOOLEAN_ARGUMENTS) > 20
