"""What operator and sensor share: tracking of the flow run (its link in XCom, OpenLineage), and templates.

The templates of a task are checked for slips: a template that became the text of no value or of a list.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.validation import Problems
    from airflow_provider_flows.hooks import FlowsHook

log = logging.getLogger(__name__)

RUN_LINK_KEY = "flow_run_link"
RUN_ID_KEY = "flow_run_id"
OUTPUT_ARGUMENTS = frozenset({"output_path", "output_conn_id"})
# all templated arguments except `additional`, which is metadata and may be any text
CHECKED_ARGUMENTS = OUTPUT_ARGUMENTS | {
    "flow", "inputs", "parameters", "flows_conn_id", "input_conn_id", "flow_run_id"
}  # fmt: skip
FUNCTION_ARGUMENTS = frozenset({"op_args", "op_kwargs"})  # of @task.flow; what it makes of them is its own


class TemplateCheckMixin:
    """A task whose templates are checked while Airflow renders them. The task decides what to do about slips.

    A slip is a template that became the text of no value or of a collection, such as `None` or `['a', 'b']`.
    """

    _template_slips: Mapping[str, Mapping[str, str]] = {}  # replaced as a whole, never changed

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render a value as Airflow does, and record what is wrong with the templates of an argument."""
        from airflow_provider_flows.core.template_slips import TemplateRecorder  # imports stay cheap
        from airflow_provider_flows.storage.inputs import is_task

        if is_task(content):  # Airflow would render that task's own templates
            return content
        recorder = getattr(jinja_env, "finalize", None)
        if not isinstance(recorder, TemplateRecorder):
            names = sorted(CHECKED_ARGUMENTS | FUNCTION_ARGUMENTS)
            arguments = [name for name in names if getattr(self, name, None) is content]
            return self.render_argument(arguments, content, context, jinja_env, seen_oids)
        recorder.values.clear()
        rendered = super().render_template(content, context, jinja_env, seen_oids)  # type: ignore[misc]
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
        """Render the value of arguments, and record what is wrong with their templates.

        A DAG whose Jinja environment has a `finalize` of its own decides itself how values become text.

        :param arguments: the names of the arguments that have this value.
        """
        from airflow_provider_flows.core.template_slips import TemplateRecorder
        from airflow_provider_flows.storage.inputs import iter_texts

        env: Any = jinja_env or self.get_template_env()  # type: ignore[attr-defined]
        if env.finalize is not None:
            return super().render_template(content, context, env, seen_oids)  # type: ignore[misc]
        recorder = TemplateRecorder()
        rendered = self.render_template(content, context, env.overlay(finalize=recorder), seen_oids)
        slips = {name: recorder.find_slips(name, iter_texts(name, content)) for name in arguments}
        self._template_slips = {**self._template_slips, **slips}
        return rendered

    def get_template_problems(self, arguments: Collection[str] = CHECKED_ARGUMENTS) -> Problems:
        """Return what is wrong with the templates of these arguments."""
        from airflow_provider_flows.core.validation import Problems

        problems = Problems()
        for name in sorted(arguments):
            for where, slip in self._template_slips.get(name, {}).items():
                problems.add(f"{where}: {slip}", invalidates=name if name != "inputs" else where)
                problems.invalid.update(re.findall(r"^inputs\[[^]]*\]", where))
        return problems


class RunTrackingMixin:
    """A task that has a flow run.

    `flow_run` is the run as last polled, with its outputs once they are fetched; None while there is no run.
    `flow_run_url` is its web address, empty if there is none.
    """

    flow_run: FlowRun | None = None
    flow_run_url: str = ""

    def get_run_tracker(
        self, context: Context, hook: FlowsHook, flow_run_id: str | None = None
    ) -> Callable[[FlowRun], None]:
        """Return the function to call with the run whenever it has changed.

        :param flow_run_id: the run, if only its id is available yet, as in a task that is resumed after a
            deferral.
        """
        from airflow_provider_flows.core.flow_run import FlowRun  # importing the operators stays cheap

        def on_run_update(run: FlowRun) -> None:
            self.flow_run = run
            url = get_run_url(hook, run)
            if url != self.flow_run_url:
                self.flow_run_url = url
                _push_run_link(context, url)

        if isinstance(flow_run_id, str) and flow_run_id.strip():
            if self.flow_run is None:  # in this process; a sensor in poke mode polls many times in one
                push_run_id(context["ti"], flow_run_id.strip())
            on_run_update(FlowRun(flow_run_id.strip(), hook.service.name, getattr(self, "flow", None)))
        return on_run_update

    def get_openlineage_facets_on_complete(
        self,
        task_instance: Any,  # noqa: ARG002  # the openlineage provider's signature
    ) -> OperatorLineage[Any, Any]:
        """Return the files that the task read and wrote, and its flow run, for OpenLineage."""
        from airflow.providers.common.compat.sdk import redact

        from airflow_provider_flows.core.redaction import redact_parameters
        from airflow_provider_flows.storage.inputs import get_file_uris
        from airflow_provider_flows.worker.lineage import create_lineage  # imports an optional provider

        run, parameters = self.flow_run, getattr(self, "parameters", None)
        if parameters is None and run is not None:
            parameters = run.parameters
        input_uris = get_file_uris(getattr(self, "inputs", None))
        return create_lineage(run, input_uris, redact_parameters(parameters, redact))

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the same for a task that failed. If it failed before there was a run, it has inputs only."""
        return self.get_openlineage_facets_on_complete(task_instance)


def get_run_url(hook: FlowsHook, run: FlowRun) -> str:
    """Return the web address of a flow run, without sending a request; empty if its service has none."""
    try:
        url = hook.service.run_url(run.flow_run_id, run.flow) or ""
    except Exception as error:  # noqa: BLE001  # a link is not worth a failure
        log.info("The %s has no link: %s", run, error)
        return ""
    if url.startswith(("https://", "http://")):
        return url
    return f"{hook.settings.base_url}{url}" if url.startswith("/") else ""


def push_run_id(ti: Any, flow_run_id: str) -> None:
    """Push the id of a task's flow run to XCom during the wait. Airflow empties XCom when a try starts."""
    try:
        ti.xcom_push(RUN_ID_KEY, flow_run_id)
    except Exception as error:  # noqa: BLE001  # an id in XCom is not worth a paid run
        log.warning("The id of flow run %s could not be pushed to XCom: %r", flow_run_id, error)


def _push_run_link(context: Context, url: str) -> None:
    """Push the run's link during the wait. When the task ends, Airflow does it anyway."""
    try:
        context["ti"].xcom_push(RUN_LINK_KEY, url)
    except Exception as error:  # noqa: BLE001  # a link is not worth a failure
        log.warning("The link to the flow run could not be pushed to XCom: %r", error)
