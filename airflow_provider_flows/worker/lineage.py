"""Lineage: what a task's flow run read and wrote as OpenLineage datasets, and the run itself as a facet.

The openlineage provider asks for it at the end of a task (traced.py), and nothing else imports this module: it needs that
provider, which need not be installed.

Source of the names: https://openlineage.io/docs/spec/naming and https://openlineage.io/docs/spec/facets/custom-facets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import redact
from airflow.providers.openlineage.extractors import OperatorLineage
from attrs import define
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet, output_statistics_output_dataset

from airflow_provider_flows import __version__
from airflow_provider_flows.storage.inputs import get_file_uris
from airflow_provider_flows.storage.paths import StorageLocation
from airflow_provider_flows.worker.run_tracking import redact_parameters

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowOutput, FlowRun
    from airflow_provider_flows.worker.run_tracking import RunTrackingMixin

FACET = "flows_flowRun"  # a custom facet's key begins with who made it
PRODUCER = f"pkg:pypi/airflow-provider-flows@{__version__}"  # a package URL: this package, in this version
MAX_ERROR_CHARACTERS = 2 * 1024  # characters of a service's reason


@define
class FlowRunFacet(RunFacet):
    """A flow run.

    :param service: `generio` or `promptchainer`, or a third one's name.
    :param flow: the flow's name or id.
    :param flowRunId: its id at the service.
    :param state: as `FlowState` has it.
    :param parameters: what it was started with; secrets are masked, and what is too large is left out.
    :param duration: seconds from its start to its end, None if not known.
    :param error: the service's reason for a failure.
    """

    service: str
    flow: str | None
    flowRunId: str  # noqa: N815  # as all names in these facets
    state: str
    parameters: dict[str, Any]
    duration: float | None
    error: str | None


def get_lineage(task: RunTrackingMixin) -> OperatorLineage[Any, Any]:
    """Give what is known of a task's flow run; a task that failed before there was a run has its inputs only."""
    input_locations = dict.fromkeys(
        location
        for uri in get_file_uris(getattr(task, "inputs", None))
        if (location := StorageLocation.parse(uri)) is not None
    )
    run = task.flow_run
    facets = {} if run is None else {FACET: _facet(run, getattr(task, "parameters", None))}
    return OperatorLineage(
        inputs=[
            InputDataset(namespace=location.namespace, name=location.name) for location in input_locations
        ],
        outputs=[]
        if run is None
        else [_output_dataset(output) for output in run.outputs if output.uri is not None],
        run_facets=facets,
    )


def _facet(run: FlowRun, parameters: Any) -> FlowRunFacet:
    return FlowRunFacet(
        service=run.service,
        flow=run.flow,
        flowRunId=run.flow_run_id,
        state=run.state.value,
        parameters=redact_parameters(run.parameters if parameters is None else parameters),
        duration=run.duration,
        error=None if run.error is None else str(redact(run.error))[:MAX_ERROR_CHARACTERS],
        producer=PRODUCER,
    )


def _output_dataset(output: FlowOutput) -> OutputDataset:
    location = StorageLocation.parse(str(output.uri)) or StorageLocation(
        "file", "", str(output.uri).lstrip("/")
    )
    size = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(size=output.size, fileCount=1)
    return OutputDataset(
        namespace=location.namespace, name=location.name, outputFacets={"outputStatistics": size}
    )
