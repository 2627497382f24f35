"""What Airflow's database has of one task instance, and the parsing of it.

Any task, and any user who may write XComs, can store any value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import READY, FlowOutput, FlowRun
from airflow_provider_flows.core.limits import MAX_ID_LENGTH
from airflow_provider_flows.plugin.present import MAX_OUTPUTS_PER_PAGE
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.worker.task_state import MAX_PREVIOUS_RUNS

INDEX_PATTERN = re.compile(r"(-?[0-9]{1,9})(?:@([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))?")
MAX_PLAUSIBLE_SIZE_BYTES = 2**60


class TaskKey(NamedTuple):
    """The key of a task instance.

    `map_index` is the index that Airflow stores: the iteration of a task in a loop, too.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    region_id: str | None = None
    """The region of a mapped task instance, or of one in a loop; None outside one, and before Airflow 3.4."""

    @classmethod
    def parse(cls, dag_id: str, run_id: str, task_id: str, index: str) -> TaskKey:
        """Return the key in the path of a page, with the index that Airflow shows.

        Airflow's UI leaves the placeholder `{MAP_INDEX}` in the URL of a task instance that is not mapped.
        Links have the region behind the stored index, if there is one: `3@<region_id>`.
        """
        match = INDEX_PATTERN.fullmatch(index)
        number, region_id = match.groups() if match else (-1, None)
        return cls(dag_id, run_id, task_id, int(number), region_id)

    def to_filters(self) -> dict[str, Any]:
        """Return the columns by which tables without regions are filtered."""
        return {name: value for name, value in self._asdict().items() if name != "region_id"}

    def to_region(self) -> dict[str, Any]:
        """Return the region as a flow run's stamp has it; empty outside one."""
        return {} if self.region_id is None else {"region_id": self.region_id, "region_index": self.map_index}


@dataclass(frozen=True)
class TaskInstanceData:
    """What Airflow's database has of one task instance.

    XComs and arguments are those of the latest try that has started. Users who may write XComs can forge
    them, but not the task state store: only the task itself can write it, and users who may edit its task
    instances.

    :param state: of the task instance, of which the next try may be waiting.
    :param try_number: of the latest try that has started.
    :param fields: the task's arguments, as rendered.
    :param previous_runs: the flow runs of earlier tries, from the task state store.
    :param result: the XCom `return_value`.
    :param flow_run_id: the XCom of this name.
    :param outputs: the XCom with the outputs.
    :param team_name: the team that its DAG belongs to; None without one, and in an Airflow without teams.
    """

    state: str | None
    try_number: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    previous_runs: Any = None
    result: Any = None
    flow_run_id: Any = None
    outputs: Any = None
    key: TaskKey | None = None
    run_record: Any = None
    """The record of the task's flow run, from the task state store."""
    first_file_records: Any = None
    """The first value with the records of its files, from there too."""
    batch_header: Any = None
    """The record of the task's batch as a whole, from there too."""
    input_error: str | None = None
    """Why the latest try has started no flow run, from there too, if its arguments were invalid."""
    earlier_runs: tuple[tuple[Any, int], ...] = ()
    """The flow runs in the XComs of earlier tries, each with its try, latest first; none on Airflow 3.3."""
    team_name: str | None = None
    prompts: Any = None
    """The beginnings of a deferred task's prompts, which its arguments no longer have, from there too."""


def get_shown_inputs(ti_data: TaskInstanceData) -> Any:
    """Return the inputs that pages show: the arguments, after the prompts that the latest try has saved."""
    inputs, saved = ti_data.fields.get("inputs"), ti_data.prompts
    if not isinstance(saved, Mapping) or saved.get("try_number") != ti_data.try_number:
        return inputs
    if not isinstance(inputs, list | None) or not isinstance(saved.get("prompts"), list):
        return inputs
    return [*({"data": text} for text in saved["prompts"] if isinstance(text, str)), *(inputs or ())]


def parse_returned_run(result: Any) -> FlowRun | None:
    """Return the run that a task returned, None if it returned something else."""
    if not isinstance(result, Mapping):
        return None
    if not all(isinstance(result.get(name), str) for name in ("flow_run_id", "service")):
        return None
    return FlowRun.from_event(result) if is_run_id(result["flow_run_id"]) else None


def is_run_id(text: str) -> bool:
    """Return whether a text may be the id of a flow run."""
    return 0 < len(text) <= MAX_ID_LENGTH


def _parse_previous_runs(ti_data: TaskInstanceData) -> list[tuple[str, int]]:
    """Return the recorded runs of earlier tries, latest first."""
    value = ti_data.previous_runs
    rows = [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
    pairs = [(row.get("flow_run_id"), row.get("last_try")) for row in reversed(rows[-MAX_PREVIOUS_RUNS:])]
    return [(run, last) for run, last in pairs if isinstance(run, str) and run.strip() and type(last) is int]


def list_earlier_runs(ti_data: TaskInstanceData) -> list[tuple[str, int]]:
    """Return the runs of earlier tries, latest first: the recorded ones, and those in the XComs of tries."""
    runs = dict(_parse_previous_runs(ti_data))
    for run, number in ti_data.earlier_runs:
        if isinstance(run, str) and is_run_id(run.strip()):
            runs.setdefault(run.strip(), number)
    return sorted(runs.items(), key=lambda pair: -pair[1])


def get_recorded_run_ids(ti_data: TaskInstanceData) -> frozenset[str]:
    """Return the ids of the task's flow runs, of all tries, by what no XCom can write.

    A sensor has its id as an argument, which the worker has rendered.
    """
    records = (
        ti_data.run_record,
        ti_data.first_file_records,
        {"flow_run_id": ti_data.fields.get("flow_run_id")},
    )
    ids = [record.get("flow_run_id") for record in records if isinstance(record, Mapping)]
    ids += [run for run, _ in _parse_previous_runs(ti_data)]
    return frozenset(text.strip() for text in ids if isinstance(text, str) and text.strip())


def parse_output_options(fields: Mapping[str, Any]) -> OutputOptions:
    """Return the arguments by which a task stores files; without any if they are invalid."""
    try:
        return OutputOptions(
            get_nonempty_str(fields, "output_path"), get_nonempty_str(fields, "output_conn_id")
        )
    except FlowInputError:
        return OutputOptions()


def parse_outputs(value: Any) -> tuple[FlowOutput, ...]:
    """Return the outputs in an XCom, without fields of the wrong type."""
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    return tuple(
        FlowOutput(
            name=_get_str(row, "name") or f"output {number}",
            asset_id=_get_str(row, "asset_id"),
            status=_get_str(row, "status") or READY,
            media_type=_get_str(row, "media_type"),
            value=_get_str(row, "value"),
            uri=_get_str(row, "uri"),
            size=_get_size(row),
            sha256=_get_str(row, "sha256"),
            error=_get_str(row, "error"),
            warning=_get_str(row, "warning"),
            verdict=row["verdict"] if isinstance(row.get("verdict"), dict) else None,
        )
        for number, row in enumerate(rows[:MAX_OUTPUTS_PER_PAGE], 1)
    )


def _get_size(row: Mapping[str, Any]) -> int | None:
    size = row.get("size")
    return size if type(size) is int and 0 <= size <= MAX_PLAUSIBLE_SIZE_BYTES else None


def _get_str(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def get_nonempty_str(fields: Mapping[str, Any], name: str) -> str | None:
    """Return a text, None if it is missing, empty or no text."""
    value = _get_str(fields, name)
    return value if value is not None and value.strip() else None
