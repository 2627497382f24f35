"""Problems of a task's arguments that nothing else notices before a flow run is paid for.

A template rendered to the text of no value or of a collection, which is a valid prompt, path or name. An
argument is a task in place of its result, or a result that the task does not push. A Boolean is a text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from airflow_provider_flows.core.exceptions import FlowInputError

EXPRESSION_PATTERN = re.compile(r"\{\{.*?\}\}", re.DOTALL)  # with Jinja's default delimiters
NOTHING_WORDS = frozenset({"none", "null", "nan", "undefined"})  # in lower case
COLLECTION_STARTS = frozenset("[{(")
MAX_ARGUMENT_DEPTH = 5  # of the containers in which a task is searched
NATIVE_RENDERING = "set render_template_as_native_obj=True on the DAG"
RESULT_HINT = "pass a task's result as its .output, without a template"
RUN_KEYS = frozenset({"flow_run_id", "outputs"})  # of what a task returns (`FlowRun.to_dict`)
# arguments that take one value of a task's result, which has it under the same name, and how to write that
RESULT_EXPRESSIONS = {
    "flow": "\"{{{{ ti.xcom_pull('{task}')['flow'] }}}}\"",
    "flow_run_id": '{task}.output["flow_run_id"]',
}
RETURN_VALUE = "return_value"  # Airflow's key of what a task returns


class TemplateRecorder:
    """Records what templates render to, as the `finalize` of a Jinja environment and with `record_nodes`.

    `values` holds the values of the expressions of the template that is being rendered, before they become
    text. `texts` holds, by template, its text and these values.

    :param is_name: whether the argument is a name, an id or a path, which is always a text
        (`to_native_value`).
    """

    def __init__(self, *, is_name: bool = False) -> None:
        self.is_name = is_name
        self.values: list[Any] = []
        self.texts: dict[str, tuple[str, tuple[Any, ...]]] = {}
        self._nodes: list[Any] = []
        self._is_rendering = False

    def __call__(self, value: Any) -> Any:
        """Record the value of an expression, and return it."""
        self.values.append(value)
        return value

    def clear(self) -> None:
        """Forget the previous template's values and text."""
        self.values.clear()
        self._nodes.clear()

    def record_nodes(self, render: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Return a template's function that yields what it renders to in parts, and records these parts."""

        def render_recorded(*arguments: Any) -> Iterator[Any]:
            if self._is_rendering:  # a template that another one includes: its parts are the other's as well
                yield from render(*arguments)
                return
            self._is_rendering = True
            try:
                for node in render(*arguments):
                    self._nodes.append(node)
                    yield node
            finally:
                self._is_rendering = False

        return render_recorded

    def to_native_value(self, template: str, rendered: Any) -> Any:
        """Return what a template rendered to in a DAG with native rendering, or its text if it is a text.

        Native rendering passes the value of an expression as it is, which is why a DAG has it. It also parses
        every text as Python: the prompt `12` would become a number, and the text of a prompt, which anybody
        may have written, a dict that names a file. Here, only two kinds of text are parsed: one of the filter
        `tojson`, and a collection that the template itself writes.
        """
        nodes = self._nodes
        if not nodes and template:  # blocks without a text, which are None in native rendering
            return rendered
        is_expression = not EXPRESSION_PATTERN.sub("", template).strip()
        has_other_values = any(type(value) is not str for value in self.values)  # also texts of `tojson`
        if len(nodes) == 1 and is_expression and has_other_values:
            is_number = isinstance(rendered, (int, float)) and not isinstance(rendered, bool)
            return str(rendered) if self.is_name and is_number else rendered
        is_collection = isinstance(rendered, (list, tuple, dict, set))
        if is_collection and not self.is_name and (has_other_values or not is_expression):
            return rendered
        return "".join(map(str, nodes))

    def find_problems(self, argument: str, texts: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return the problems of the templates of an argument, by their place in it.

        :param texts: the places in the argument, and the texts there, before they were rendered.
        """
        allow_any_text = argument == "parameters"  # a flow may take the empty text or the word None
        problems = {
            where: describe_template_problem(
                template,
                *self.texts[template],
                allow_any_text=allow_any_text,
                may_quote=argument in {"inputs", "parameters"} and not where.endswith("['uri']"),
            )
            for where, template in texts
            if template in self.texts
        }
        any_text = "; {'data': ...} takes any text" if argument == "inputs" else ""
        return {where: f"{problem}{any_text}" for where, problem in problems.items() if problem is not None}


def describe_template_problem(
    template: str,
    text: str,
    values: Sequence[Any],
    *,
    allow_any_text: bool = False,
    may_quote: bool = True,
) -> str | None:
    """Return the problem if a template's text is that of no value or of a collection, else None.

    A None is a problem anywhere in a text. A collection is one only as the complete text, because a longer
    text may quote a collection. JSON that has content, as of `tojson`, and a joined list are accepted.

    :param text: the template's text.
    :param values: the values of its expressions.
    :param allow_any_text: whether to accept an empty text, and the word None where no value is None.
    :param may_quote: whether a longer text may quote a collection; a path or a name never does.
    """
    stripped = text.strip()
    collection = _find_collection(stripped, values, may_quote=may_quote)
    is_none = "None" in text and any(value is None for value in values)
    if text == template or (allow_any_text and not is_none and collection is None):
        return None
    if is_none:
        result, remedy = "None", "check that its variables and XComs exist and have a value"
    elif stripped.lower() in NOTHING_WORDS:
        result, remedy = stripped, "check that its variables and XComs exist and have a value"
    elif not stripped:
        result, remedy = "an empty text", "check that its variables and XComs have a value"
    elif isinstance(collection, Mapping):
        result, remedy = "the text of a dict", f"to pass the dict itself, {NATIVE_RENDERING}"
    elif collection is not None:
        expand = "or map the task over the list with expand"
        result, remedy = "the text of a list", f"to pass the list itself, {NATIVE_RENDERING}, {expand}"
    else:
        return None
    expressions = EXPRESSION_PATTERN.findall(template) or [template]
    return f"the template {' or '.join(map(repr, expressions))} rendered to {result}: {remedy}; {RESULT_HINT}"


def _find_collection(text: str, values: Sequence[Any], *, may_quote: bool) -> Any:
    """Return the collection that a template's text represents, or contains unless it may quote one, or None.

    The text may be that of an expression, or one that a filter or another task wrote as Python does.
    """
    for value in values:
        if _is_collection(value):
            written = str(value).strip()
            if written == text or (not may_quote and written in text):
                return value
    if text[:1] not in COLLECTION_STARTS:
        return None
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return parsed if _is_collection(parsed) and not (parsed and _is_json(text)) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_collection(value: Any) -> bool:
    """Return whether a value is a list, a dict or the like, also one of Airflow's, such as `params`."""
    return isinstance(value, (Mapping, Sequence, AbstractSet, Iterator)) and not isinstance(
        value, (str, bytes)
    )


def is_task(value: object) -> bool:
    """Return whether a value is a task itself (an operator) instead of its result."""
    return hasattr(value, "task_id") and hasattr(type(value), "output")


def is_decorated_function(value: object) -> bool:
    """Return whether a value is a function with a decorator such as `@task`, instead of what it returns."""
    return callable(value) and hasattr(value, "operator_class") and hasattr(value, "function")


def describe_misplaced_task(argument: str, value: Any) -> str | None:
    """Return the problem if a value is a task or a decorated function itself, or all that a task returned.

    :param argument: the argument that has the value, of which `inputs` takes all that a task returned.
    """
    name = argument.partition("[")[0]
    if is_task(value):
        if name == "inputs":
            remedy = "write .output after it to pass the task's result"
        else:
            example = RESULT_EXPRESSIONS.get(name, "\"{{{{ ti.xcom_pull('{task}')[...] }}}}\"")
            remedy = f"to pass a value of the task's result, write {example.format(task=value.task_id)}"
        return f"is the task {value.task_id!r} itself; {remedy}"
    if is_decorated_function(value):
        function = getattr(value.function, "__name__", "function")
        return (
            f"is the decorated function {function!r} itself; call it, as in {function}(), and pass what that "
            "returns"
        )
    if name in RESULT_EXPRESSIONS and isinstance(value, Mapping) and value.keys() >= RUN_KEYS:
        text = ", or the name of a flow" if name == "flow" else ""
        example = RESULT_EXPRESSIONS[name].format(task="first")
        return f"is all that a task returned; write {example} for the task `first`{text}"
    return None


def describe_missing_xcom(value: Any) -> str | None:
    """Return the problem if a value is an XCom (`first.output["key"]`) that its task does not push, or None.

    That is known of this provider's operators, by their `xcom_keys`. A subclass of one, or a function, may
    push others itself: then a key is a problem only if it resembles a known one.
    """
    key, operator = getattr(value, "key", None), getattr(value, "operator", None)
    task_class = getattr(operator, "operator_class", type(operator))  # that of a mapped task
    known = getattr(task_class, "xcom_keys", None)
    if not isinstance(key, str) or known is None or key in {RETURN_VALUE, *known}:
        return None
    from difflib import get_close_matches  # importing operators stays cheap

    hint = "".join(f" (did you mean {name!r}?)" for name in get_close_matches(key, sorted(known), n=1))
    if getattr(operator, "multiple_outputs", False) or not (hint or "xcom_keys" in vars(task_class)):
        return None
    task_id = getattr(operator, "task_id", "")
    keys = "".join(f', .output["{name}"]' for name in sorted(known))
    return (
        f"is .output[{key!r}] of the task {task_id!r}, which pushes no XCom of that key{hint}. It has .output"
        f"{keys}; for any other value of its result, write \"{{{{ ti.xcom_pull({task_id!r})['state'] }}}}\""
    )


def require_booleans(arguments: Mapping[str, object]) -> None:
    """Check that arguments are True or False: a text such as "no" would count as True.

    :param arguments: the values by the names of the arguments.
    :raises FlowInputError: one is not; the message names it.
    """
    for name, value in arguments.items():
        if not isinstance(value, bool):
            text = " (without quotation marks)" if isinstance(value, str) else ""
            raise FlowInputError(f"{name} must be True or False{text}, not {value!r}")


def find_misplaced_tasks(where: str, value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the problem of each task, decorated function or missing XCom in an argument of a task.

    :param where: the argument, or the place in it.
    """
    if is_task(value) or is_decorated_function(value):
        yield f"{where} {describe_misplaced_task(where, value)}"
    elif (problem := describe_missing_xcom(value)) is not None:
        yield f"{where} {problem}"
    elif depth >= MAX_ARGUMENT_DEPTH:
        return
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from find_misplaced_tasks(f"{where}[{key!r}]", one, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from find_misplaced_tasks(f"{where}[{index}]", one, depth + 1)
