"""OpenLineage metadata of a task: the files that its flow runs read and wrote as datasets, and its facet.

This module needs the openlineage provider, which is optional.

Names of datasets: https://openlineage.io/docs/spec/naming.
Custom facets: https://openlineage.io/docs/spec/facets/custom-facets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import redact
from airflow.providers.openlineage.extractors import OperatorLineage
from attrs import define
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet, output_statistics_output_dataset

from airflow_provider_flows import __version__
from airflow_provider_flows.core.redaction import strip_signatures
from airflow_provider_flows.storage.batch_items import WILDCARDS
from airflow_provider_flows.storage.inputs import is_path
from airflow_provider_flows.storage.paths import (
    WEB_SCHEMES,
    StorageLocation,
    is_likely_path_or_uri,
    to_uri,
)

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun

FACET = "flows_flowRun"
BATCH_FACET = "flows_flowBatch"  # a custom facet's key starts with its producer's name
PRODUCER = f"pkg:pypi/airflow-provider-flows@{__version__}"  # a package URL
MAX_ERROR_CHARACTERS = 2 * 1024


@define
class FlowRunFacet(RunFacet):
    """A flow run.

    :param service: `generio`, `promptchainer`, or the name of another service.
    :param flow: the flow's name or id.
    :param flowRunId: the run's id at the service.
    :param state: a value of `FlowState`.
    :param parameters: the run's parameters; secrets are masked, and those that are too large are left out.
    :param duration: seconds from its start to its end; None if unknown.
    :param error: the service's reason for a failure.
    :param verdict: of the task's checks: `accepted`, `problems`, `paid_runs` and `rejected_runs`; None
        without checks.
    """

    service: str
    flow: str | None
    flowRunId: str  # noqa: N815  # OpenLineage uses camel case
    state: str
    parameters: dict[str, Any]
    duration: float | None
    error: str | None
    verdict: dict[str, Any] | None


@define
class FlowBatchFacet(RunFacet):
    """A batch of flow runs.

    :param service: as that of `FlowRunFacet`, and so are `flow`, `parameters` and `duration`.
    :param manifest: the URI of the manifest, which has a line for each item.
    :param total: the number of items; of them `completed`, `failed` and `aborted`.
    :param reused: how many completed items have the outputs of an earlier flow run.
    :param rejected: how many failed items have outputs that the task's checks have rejected; None without
        checks.
    """

    service: str
    flow: str
    manifest: str
    total: int
    completed: int
    failed: int
    aborted: int
    reused: int
    parameters: dict[str, Any]
    duration: float | None
    rejected: int | None


def create_batch_lineage(
    items: Any, output_path: str, result: Mapping[str, Any] | None, parameters: Mapping[str, Any]
) -> OperatorLineage[Any, Any]:
    """Return the metadata of a task with a batch: one dataset for its items, and one for its outputs.

    :param items: as the operator takes them. A list is no dataset; a pattern is that of its folder.
    :param output_path: the folder of the outputs.
    :param result: what the task returns; None if it failed before its items had ended.
    :param parameters: of all flow runs, without secrets.
    """
    source, folder = _to_location(items), None if result is None else _to_location(output_path)
    return OperatorLineage(
        inputs=[] if source is None else [InputDataset(namespace=source.namespace, name=source.name)],
        outputs=[] if folder is None else [OutputDataset(namespace=folder.namespace, name=folder.name)],
        run_facets={} if result is None else {BATCH_FACET: _to_batch_facet(result, parameters)},
    )


def _to_location(path_or_uri: Any) -> StorageLocation | None:
    """Return the location of a file or folder; of a pattern such as `photos/*.png` that of its folder.

    It is None for anything else, such as a text, which may be content.
    """
    if is_path(path_or_uri):
        uri = to_uri(path_or_uri)
    elif isinstance(path_or_uri, str) and is_likely_path_or_uri(path_or_uri):
        uri = path_or_uri if "://" in path_or_uri else f"file://{path_or_uri}"
    else:
        return None
    folder, _, name = uri.rstrip("/").rpartition("/")
    is_pattern = bool(WILDCARDS & set(name)) and uri.partition("://")[0].lower() not in WEB_SCHEMES
    return StorageLocation.parse(folder if is_pattern else uri.rstrip("/"))


def _to_batch_facet(result: Mapping[str, Any], parameters: Mapping[str, Any]) -> FlowBatchFacet:
    names = ("service", "flow", "total", "completed", "failed", "aborted", "reused", "duration")
    return FlowBatchFacet(
        **{name: result[name] for name in names},
        manifest=strip_signatures(str(result["manifest"])),
        parameters=dict(parameters),
        rejected=result.get("rejected"),
        producer=PRODUCER,
    )


def create_lineage(
    run: FlowRun | None, input_uris: Collection[str], parameters: Mapping[str, Any]
) -> OperatorLineage[Any, Any]:
    """Return the metadata of a task.

    :param run: its flow run with its outputs; None if the task failed before there was one.
    :param input_uris: of the files among its inputs.
    :param parameters: of the run, without secrets.
    """
    locations = [StorageLocation.parse(uri) for uri in input_uris]
    unique_locations = dict.fromkeys(location for location in locations if location is not None)
    outputs = () if run is None else run.outputs
    return OperatorLineage(
        inputs=[
            InputDataset(namespace=location.namespace, name=location.name) for location in unique_locations
        ],
        outputs=[_to_dataset(output) for output in outputs if output.uri is not None],
        run_facets={} if run is None else {FACET: _to_facet(run, parameters)},
    )


def _to_facet(run: FlowRun, parameters: Mapping[str, Any]) -> FlowRunFacet:
    return FlowRunFacet(
        service=run.service,
        flow=run.flow,
        flowRunId=run.flow_run_id,
        state=run.state.value,
        parameters=dict(parameters),
        duration=run.duration,
        error=None if run.error is None else str(redact(run.error))[:MAX_ERROR_CHARACTERS],
        verdict=None if run.verdict is None else dict(run.verdict),
        producer=PRODUCER,
    )


def _to_dataset(output: FlowOutput) -> OutputDataset:
    uri = str(output.uri)
    location = StorageLocation.parse(uri) or StorageLocation("file", "", uri.lstrip("/"))
    size = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(size=output.size, fileCount=1)
    return OutputDataset(
        namespace=location.namespace, name=location.name, outputFacets={"outputStatistics": size}
    )
