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
from airflow_provider_flows.storage.inputs import uris_of
from airflow_provider_flows.storage.locations import Place
from airflow_provider_flows.worker.run_tracking import told

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowOutput, FlowRun
    from airflow_provider_flows.worker.run_tracking import Traced

FACET = "flows_flowRun"  # a custom facet's key begins with who made it
PRODUCER = f"pkg:pypi/airflow-provider-flows@{__version__}"  # a package URL: this package, in this version
MOST_TEXT = 2 * 1024  # characters of a service's reason


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


def lineage_of(task: Traced) -> OperatorLineage[Any, Any]:
    """Give what is known of a task's flow run; a task that failed before there was a run has its inputs only."""
    read = dict.fromkeys(
        place for uri in uris_of(getattr(task, "inputs", None)) if (place := Place.of(uri)) is not None
    )
    run = task.flow_run
    facets = {} if run is None else {FACET: _facet(run, getattr(task, "parameters", None))}
    return OperatorLineage(
        inputs=[InputDataset(namespace=place.namespace, name=place.name) for place in read],
        outputs=[] if run is None else [_written(output) for output in run.outputs if output.uri is not None],
        run_facets=facets,
    )


def _facet(run: FlowRun, parameters: Any) -> FlowRunFacet:
    return FlowRunFacet(
        service=run.service,
        flow=run.flow,
        flowRunId=run.flow_run_id,
        state=run.state.value,
        parameters=told(run.parameters if parameters is None else parameters),
        duration=run.duration,
        error=None if run.error is None else str(redact(run.error))[:MOST_TEXT],
        producer=PRODUCER,
    )


def _written(output: FlowOutput) -> OutputDataset:
    place = Place.of(str(output.uri)) or Place("file", "", str(output.uri).lstrip("/"))
    size = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(size=output.size, fileCount=1)
    return OutputDataset(namespace=place.namespace, name=place.name, outputFacets={"outputStatistics": size})
