"""A check of a task's templates: a template must not render to the text of no value or of a collection."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.template_problems import TemplateRecorder
    from airflow_provider_flows.core.validation import Problems

OUTPUT_ARGUMENTS = frozenset({"output_path", "output_conn_id", "output_name", "reuse_path"})
# names, ids and paths, which are always texts
NAME_ARGUMENTS = OUTPUT_ARGUMENTS | {"flow", "flows_conn_id", "input_conn_id", "flow_run_id"}
# all templated arguments except `additional`, which is metadata and may be any text
CHECKED_ARGUMENTS = NAME_ARGUMENTS | {"inputs", "parameters"}
BOOLEAN_ARGUMENTS = (
    "abort_on_kill",
    "deferrable",
    "delete_after_fetch",
    "durable",
    "fetch_partial_outputs",
    "never_fail",
    "silent_fail",
    "soft_fail",
    "validate",
    "wait_for_completion",
)
FUNCTION_ARGUMENTS = frozenset({"op_args", "op_kwargs"})  # of the function of @task.flow


TASK_ID_AS_PROMPT = (
    "%s is the text %r, which is also the id of a task of this DAG. The text is sent as it is. To pass the "
    "task's result, write %s.output, without quotation marks"
)


@contextmanager
def suggest_arguments(task_class: type, arguments: Collection[str]) -> Iterator[None]:
    """Add the closest arguments of a task's class to Airflow's error about unknown ones.

    :param arguments: the names that were passed on to Airflow.
    """
    try:
        yield
    except TypeError as error:
        from airflow_provider_flows.core.validation import suggest_names

        methods = [vars(one)["__init__"] for one in task_class.__mro__ if "__init__" in vars(one)]
        known = {name for method in methods for name in signature(method).parameters}
        hints = [
            f"{name}{hint}"
            for name in arguments
            if name not in known and name in str(error) and (hint := suggest_names(name, known, max_count=3))
        ]
        if not hints:
            raise
        raise TypeError(f"{error}. {'; '.join(hints)}") from None


class TemplateCheckMixin:
    """A task whose templates are checked while Airflow renders them.

    A problem is a template that rendered to the text of no value or of a collection, such as `None` or
    `['a', 'b']`. It is recorded; the task decides when to raise it.
    """

    # by argument, then by place in it; replaced and never changed, because all tasks share the default
    _template_problems: Mapping[str, Mapping[str, str]] = {}

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render a value as Airflow does, and record the problems of its templates."""
        from airflow_provider_flows.core.template_problems import (  # imports stay cheap
            TemplateRecorder,
            is_task,
        )

        if is_task(content):  # Airflow would render that task's own templates
            return content
        recorder = getattr(jinja_env, "finalize", None)
        if not isinstance(recorder, TemplateRecorder):
            names = sorted(CHECKED_ARGUMENTS | FUNCTION_ARGUMENTS)
            arguments = [name for name in names if getattr(self, name, None) is content]
            return self.render_argument(arguments, content, context, jinja_env, seen_oids)
        recorder.clear()
        rendered = super().render_template(content, context, jinja_env, seen_oids)  # type: ignore[misc]
        if isinstance(content, str):
            rendered = recorder.to_native_value(content, rendered)
        if isinstance(rendered, str) or callable(getattr(rendered, "open", None)):  # a text or a path
            recorder.texts[str(content)] = str(rendered), tuple(recorder.values)
        return rendered

    def render_argument(
        self,
        arguments: Collection[str],
        content: Any,
        context: Context,
        jinja_env: Any = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render the value of arguments, and record the problems of their templates.

        Templates are not checked if the DAG's Jinja environment has its own `finalize`, which then defines
        how values become text.

        :param arguments: the names of the arguments that have this value.
        """
        from airflow_provider_flows.core.template_problems import TemplateRecorder
        from airflow_provider_flows.storage.inputs import iter_texts

        env: Any = jinja_env or self.get_template_env()  # type: ignore[attr-defined]
        if env.finalize is not None:
            return super().render_template(content, context, env, seen_oids)  # type: ignore[misc]
        recorder = TemplateRecorder(is_name=bool(arguments) and NAME_ARGUMENTS.issuperset(arguments))
        rendered = self.render_template(content, context, _create_recording_env(env, recorder), seen_oids)
        problems = {name: recorder.find_problems(name, iter_texts(name, content)) for name in arguments}
        self._template_problems = {**self._template_problems, **problems}
        return rendered

    def check_arguments(self) -> None:
        """Check the arguments of the task when the DAG is parsed: Booleans, and the results of other tasks.

        :raises FlowInputError: a Boolean argument is none; or an argument is a task in place of its result,
            or a result that the task does not push, and would fail after the other task has been paid for.
        """
        from airflow_provider_flows.core.exceptions import FlowInputError
        from airflow_provider_flows.core.template_problems import find_misplaced_tasks, require_booleans

        require_booleans({name: vars(self)[name] for name in BOOLEAN_ARGUMENTS if name in vars(self)})
        problems = [
            problem
            for name in sorted(CHECKED_ARGUMENTS | {"additional", "items"})
            for problem in find_misplaced_tasks(name, getattr(self, name, None))
        ]
        if problems:
            raise FlowInputError("; ".join(problems))

    def warn_about_task_ids(self) -> None:
        """Log each prompt that is the id of a task of the DAG: its author may have meant the result."""
        from airflow_provider_flows.storage.inputs import iter_texts

        task: Any = self
        dag = task.get_dag()
        task_ids = set() if dag is None else set(dag.task_ids) - {task.task_id}
        for where, text in iter_texts("inputs", task.inputs):
            if text in task_ids:
                task.log.warning(TASK_ID_AS_PROMPT, where, text, text)

    def get_template_problems(self, arguments: Collection[str] = CHECKED_ARGUMENTS) -> Problems:
        """Return the problems of the templates of these arguments."""
        from airflow_provider_flows.core.validation import Problems

        problems = Problems()
        for name in sorted(arguments):
            for where, problem in self._template_problems.get(name, {}).items():
                problems.add(f"{where}: {problem}", invalidates=name if name != "inputs" else where)
                problems.invalid.update(re.findall(r"^inputs\[[^]]*\]", where))
        return problems

    def raise_if_connection_is_unusable(self) -> None:
        """Raise all template problems if `flows_conn_id` has one, because every other check needs that."""
        if self.get_template_problems({"flows_conn_id"}):
            from airflow_provider_flows.core.validation import NOTHING_STARTED  # imports stay cheap

            self.get_template_problems().raise_if_any(NOTHING_STARTED)


def _create_recording_env(env: Any, recorder: TemplateRecorder) -> Any:
    """Return a copy of a Jinja environment whose templates are recorded while they are rendered."""

    class RecordedTemplate(env.template_class):  # type: ignore[misc]
        @classmethod
        def from_code(cls, *arguments: Any) -> Any:
            template = super().from_code(*arguments)
            template.root_render_func = recorder.record_nodes(template.root_render_func)
            return template

    recording_env = env.overlay(finalize=recorder)
    recording_env.template_class = RecordedTemplate
    return recording_env
