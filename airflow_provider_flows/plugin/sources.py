"""The sources of a flow run: its inputs that are outputs of other tasks of the same DAG run.

A page shows them beside the run's own outputs. A source is an output of its own task's page, whose routes
check access and serve the file, so no input selects a file. No service is polled.
"""

from __future__ import annotations

from typing import NamedTuple

from airflow_provider_flows.plugin.airflow_internals import find_flow_run_tasks, load_task_instance
from airflow_provider_flows.plugin.html import quote_segment
from airflow_provider_flows.plugin.present import OutputSchema, to_output_schemas
from airflow_provider_flows.plugin.run_view import RunView
from airflow_provider_flows.plugin.task_data import TaskKey, parse_outputs, parse_returned_run
from airflow_provider_flows.plugin.texts import get_input_uri, list_inputs, to_input_schemas, to_title

MAX_SOURCES = 4  # of a page; each takes a few queries of Airflow's database


class Source(NamedTuple):
    """An input that is an output of another task.

    :param input_number: its number among the inputs, from 1.
    :param task: the task's id, with the map index of a mapped one.
    :param task_path: the path of the task's page, and `path` that of the output, relative to the app.
    """

    input_number: int
    input_name: str
    output: OutputSchema
    task: str
    task_path: str
    path: str


def load_sources(view: RunView) -> list[Source]:
    """Return the sources of a task's flow run, at most `MAX_SOURCES`; none for a run without a task."""
    if view.task_key is None:
        return []
    uris = [
        (number, name, uri)
        for number, (name, value) in enumerate(list_inputs(view.inputs), 1)
        if (uri := get_input_uri(value)) is not None
    ][:MAX_SOURCES]
    flow_run_ids = {uri: uri.rpartition("/")[0].rpartition("/")[2] for _, _, uri in uris}
    if not any(flow_run_ids.values()):
        return []
    tasks = find_flow_run_tasks(view.task_key.dag_id, view.task_key.run_id, set(flow_run_ids.values()))
    found = (
        _load_source(number, name, uri, tasks[flow_run_ids[uri]])
        for number, name, uri in uris
        if tasks.get(flow_run_ids[uri]) not in {None, view.task_key}
    )
    return [source for source in found if source is not None]


def _load_source(number: int, name: str, uri: str, key: TaskKey) -> Source | None:
    """Return the output with this URI among those that a task has returned, None if there is none."""
    ti_data = load_task_instance(*key)
    if ti_data is None or ti_data.key is None:
        return None
    run = parse_returned_run(ti_data.result)
    outputs = parse_outputs(ti_data.result.get("outputs") if run is not None else ti_data.outputs)
    title = to_title(to_input_schemas(ti_data.fields.get("inputs")))
    schemas = to_output_schemas(outputs, is_at_service=False, title=title)
    schema = next((schemas[place] for place, one in enumerate(outputs) if one.uri == uri), None)
    if schema is None:
        return None
    index = str(key.map_index) if key.region_id is None else f"{key.map_index}@{key.region_id}"
    task_path = "/".join(["task", *map(quote_segment, (key.dag_id, key.run_id, key.task_id, index))])
    task = key.task_id if key.map_index < 0 else f"{key.task_id} [{key.map_index}]"
    return Source(number, name, schema, task, task_path, f"{task_path}/output/{schema.number}")
