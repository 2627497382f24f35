"""OpenLineage metadata of a task: the files that its flow run read and wrote as datasets, and its facet.

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
from airflow_provider_flows.storage.paths import StorageLocation

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun

FACET = "flows_flowRun"  # a custom facet's key starts with its producer's name
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
    """

    service: str
    flow: str | None
    flowRunId: str  # noqa: N815  # OpenLineage uses camel case
    state: str
    parameters: dict[str, Any]
    duration: float | None
    error: str | None


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
        producer=PRODUCER,
    )


def _to_dataset(output: FlowOutput) -> OutputDataset:
    uri = str(output.uri)
    location = StorageLocation.parse(uri) or StorageLocation("file", "", uri.lstrip("/"))
    size = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(size=output.size, fileCount=1)
    return OutputDataset(
        namespace=location.namespace, name=location.name, outputFacets={"outputStatistics": size}
    )
