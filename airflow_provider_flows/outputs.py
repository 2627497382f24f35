"""From a run's outputs to files: which are fetched, under which safe names, and written whole or not at all.

It does not say how an output is downloaded (flow/services do) and waits for nothing but outputs that are still pending.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from airflow_provider_flows.flow import data_uri
from airflow_provider_flows.flow.errors import FlowConflict, FlowInputError, FlowNotFound
from airflow_provider_flows.flow.exchange import Pause
from airflow_provider_flows.flow.run import ERROR, PENDING, READY, FlowOutput, FlowRun

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.flow.data_uri import Content
    from airflow_provider_flows.flow.exchange import Conversation
    from airflow_provider_flows.flow.services import Service

log = logging.getLogger(__name__)

LOOKS_AT_PENDING = 10
LONGEST_NAME = 100
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})


class Downloads(Protocol):
    """What of a hook is needed to fetch outputs."""

    @property
    def service(self) -> Service:
        """The service, which says whether it lists outputs."""

    def settled_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """List a final run's outputs."""

    def download_output(self, flow_run_id: str, asset_id: str) -> Content:
        """Download one output."""

    def download_link(self, url: str) -> Content | None:
        """Download the picture that an output links to, None if it may not be fetched or is none."""


def settled_outputs(service: Service, flow_run_id: str) -> Conversation[list[FlowOutput]]:
    """List a final run's outputs, again and again for about half a minute while some are still pending (vendor-api G-03)."""
    for look in range(1, LOOKS_AT_PENDING + 1):
        found = yield from service.list_outputs(flow_run_id)
        if look == LOOKS_AT_PENDING or all(output.status != PENDING for output in found):
            return found
        yield Pause(min(0.5 * look, 5.0))
    raise AssertionError  # not reached: the last look returns


def fetch(hook: Downloads, run: FlowRun, output_path: str | None, output_conn_id: str | None) -> FlowRun:
    """Give the run with its outputs, every file among them written below `output_path` if that is given.

    :param output_path: any ObjectStoragePath; None leaves the files at the service.
    :raises FlowServiceError: an output could not be listed or downloaded; what was written before stays, whole.
    """
    outputs = run.outputs
    if not outputs and hook.service.offers("list_outputs"):  # a service without it has told all outputs with the run
        outputs = tuple(hook.settled_outputs(run.flow_run_id))
    for output in outputs:
        if output.status == ERROR:
            log.warning("The output %s of the %s is not there: %s", output.name, run, output.error or "no reason was given")
        elif output.status == PENDING:
            log.warning("The output %s of the %s is not called ready; it is fetched if it can be", output.name, run)
    if output_path is None:
        _warn_of_links(outputs)
        return run.with_outputs(outputs)
    folder = folder_of(run, output_path, output_conn_id)
    names = file_names(outputs)
    return run.with_outputs(tuple(_fetched(hook, run, output, folder, next(names)) for output in outputs))


def _warn_of_links(outputs: Iterable[FlowOutput]) -> None:
    for output in outputs:
        if output.link and output.value:
            until = output.expires_at or "a moment that it does not tell"
            log.warning("The output %s is a link that ends at %s. Set output_path to keep the file itself", output.name, until)


def folder_of(run: FlowRun, output_path: str, output_conn_id: str | None) -> ObjectStoragePath:
    """Give the folder of a run's files: `output_path/<flow_run_id>`, the id made safe."""
    from airflow.sdk import ObjectStoragePath  # heavy, and only needed where there are files

    return ObjectStoragePath(output_path, conn_id=output_conn_id) / safe_name(run.flow_run_id)


def checked_path(output_path: str | None, output_conn_id: str | None) -> None:
    """Find out before anything is paid whether files can be written where they are to go.

    :raises FlowInputError: no filesystem serves that URI, or a local folder cannot be made.
    """
    if output_path is None:
        return
    from airflow.sdk import ObjectStoragePath

    try:
        path = ObjectStoragePath(output_path, conn_id=output_conn_id)
        local = path.fs and path.protocol in {"", "file"}
        if local:
            path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, ImportError, TypeError) as error:
        message = (
            f"output_path {output_path!r} cannot be written to: {error}. Check its URI, its connection (output_conn_id), and "
            "that the package of its filesystem is installed. No flow run was started."
        )
        raise FlowInputError(message) from error


def _fetched(hook: Downloads, run: FlowRun, output: FlowOutput, folder: ObjectStoragePath, name: str) -> FlowOutput:
    """Download one output if it is a file, and write it."""
    if output.status == ERROR:
        return output
    if output.link and output.value:
        content = hook.download_link(output.value)
        if content is None:
            log.warning(
                "The output %s looks like a link to a picture, but is none that may be fetched; its text is kept", output.name
            )
            return output
    elif output.value is None and output.asset_id is not None:
        try:
            content = hook.download_output(run.flow_run_id, output.asset_id)
        except (FlowConflict, FlowNotFound) as error:
            if output.status != PENDING:
                raise
            log.warning("The output %s is still not ready; it is listed without a file: %s", output.name, error)
            return output
    else:
        return output
    media_type = data_uri.sniff(content.data) or content.media_type or output.media_type
    path = folder / (name + data_uri.extension(media_type))
    write_whole(path, content)
    log.info("The output %s is in %s (%d bytes)", output.name, path, len(content.data))
    return replace(
        output,
        status=READY,
        media_type=media_type,
        value=None,
        uri=uri_of(path),
        size=len(content.data),
        sha256=hashlib.sha256(content.data).hexdigest(),
    )


def uri_of(path: ObjectStoragePath) -> str:
    """Give a file's URI, with its scheme also where the path was given without."""
    text = str(path)
    return text if "://" in text else f"file://{path.absolute()}"


def write_whole(path: ObjectStoragePath, content: Content) -> None:
    """Write a file under a temporary name, then give it its final one; a file that is there already is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid4().hex[:8]}.part"
    try:
        with temporary.open("wb") as file:
            file.write(content.data)
        temporary.replace(path)
    except BaseException:  # also when the task is killed: nothing half-written may stay
        temporary.unlink(missing_ok=True)
        raise


def file_names(outputs: Iterable[FlowOutput]) -> Iterator[str]:
    """Give each output a safe file name without extension, the same one never twice, however the service calls them."""
    taken: set[str] = set()
    for output in outputs:
        plain = safe_name(output.name)
        name, number = plain, 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        yield name


def safe_name(name: str) -> str:
    """Make a name that is one harmless path segment on every store: letters, digits, dot, dash, underscore."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:LONGEST_NAME].rstrip("._-")
    return f"_{plain}" if plain.lower().partition(".")[0] in RESERVED or not plain else plain
