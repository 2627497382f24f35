"""Options of a task for its run's outputs, and their validation before the run is started."""

from __future__ import annotations

import errno
import logging
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.reuse import to_max_age
from airflow_provider_flows.core.template_problems import describe_misplaced_task

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.checks.definitions import Check
    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
    from airflow_provider_flows.core.service import Service
    from airflow_provider_flows.core.validation import Problems
    from airflow_provider_flows.storage.paths import OutputName

MAX_XCOM_BYTES = 48 * 1024  # XComs are in Airflow's database, and some databases have a limit of 64 KiB
# errors of a store that a retry would find again; others, such as those of a network, may be temporary
PERMANENT_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
)
PERMANENT_ERRNOS = frozenset({errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS})


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Options for the outputs of a run.

    :param output_path: the absolute path or the URI of a folder; a pathlib.Path or an ObjectStoragePath
        becomes its text. With None, files remain at the service and texts in XCom.
    :param output_conn_id: the Airflow connection of that storage.
    :param max_xcom_bytes: the maximum size of what the task returns, in bytes of JSON; None for any size.
    :param fetch_partial_outputs: whether to fetch the outputs of a run that failed or was aborted.
    :param delete_after_fetch: whether to delete the run at the service once all its outputs are stored as
        files.
    :param output_name: the pattern of the files' names (storage.paths.OutputName), which may still have Jinja
        templates in it; with None, a file has its output's name.
    :param folder_name: the name of the folder of the run's files below `output_path`, a safe name; None for
        the run's id.
    :param file_log_level: of the line about each file that is stored.
    :param inputs: the inputs of the task, for the fields of `output_name`; None if they are not known.
    :param selection: the asset ids or names of the outputs to fetch; None for all.
    :param reuse: how old the outputs of an earlier run of the same request may be that are used in place of a
        new run; True for any age, False for no reuse.
    :param reuse_path: the folder with the index of these outputs, None for `output_path`; a path becomes its
        text, as that of `output_path`.
    :param check_outputs: what the outputs must satisfy, as `RunFlowOperator` takes it.
    :raises FlowInputError: `max_xcom_bytes`, `output_name`, `reuse` or `check_outputs` is not valid, or
        `delete_after_fetch`, `reuse` or a check has no folder.
    """

    output_path: str | None = None
    output_conn_id: str | None = None
    max_xcom_bytes: int | None = MAX_XCOM_BYTES
    fetch_partial_outputs: bool = False
    delete_after_fetch: bool = False
    selection: frozenset[str] | None = None
    output_name: str | None = None
    folder_name: str | None = None
    file_log_level: int = logging.INFO
    inputs: Any = field(default=None, repr=False, compare=False)
    reuse: bool | timedelta = False
    reuse_path: str | None = None
    check_outputs: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Validate the options that need no service and no store."""
        for name in ("output_path", "reuse_path"):
            path = getattr(self, name)
            if isinstance(path, PurePath) or hasattr(path, "protocol"):
                # that of an ObjectStoragePath has the id of its connection
                object.__setattr__(self, name, str(path))
        if self.max_reuse_age is not None and self.output_path is None and self.reuse_path is None:
            raise FlowInputError(
                "reuse needs an output_path or a reuse_path: below it is the index of outputs that can be "
                "reused. Set one of them, or remove reuse"
            )
        limit = self.max_xcom_bytes
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise FlowInputError(
                "max_xcom_bytes must be a number of bytes that is not negative, or None for any size, "
                f"not {limit!r}"
            )
        if self.delete_after_fetch and self.output_path is None:
            raise FlowInputError(
                "delete_after_fetch=True needs an output_path: without one the outputs would be deleted with "
                "the run"
            )
        if isinstance(self.output_name, str):  # else it is the result of another task
            _ = self.file_naming
        self._require_folder_for_checks()

    def reject_without_wait(self) -> None:
        """Raise a FlowInputError if an option needs the end of a run for which the task does not wait."""
        for name in ("delete_after_fetch", "fetch_partial_outputs"):
            if getattr(self, name):
                raise FlowInputError(
                    f"{name}=True cannot be combined with wait_for_completion=False: "
                    "the task ends before the run has outputs. Remove one of the two"
                )
        if self.check_outputs is not None:
            raise FlowInputError(
                "check_outputs cannot be combined with wait_for_completion=False: the task ends before the "
                "run has outputs. Remove one of the two; FetchFlowRunOperator checks them later"
            )
        if self.max_reuse_age is not None:
            raise FlowInputError(
                "reuse cannot be combined with wait_for_completion=False: the task ends before the run has "
                "outputs. Remove one of the two"
            )

    def _require_folder_for_checks(self) -> None:
        if self.check_outputs is None or self.output_path is not None:
            return
        from airflow_provider_flows.checks.definitions import needs_files

        if (name := next(filter(None, map(needs_files, self.checks)), None)) is not None:
            raise FlowInputError(
                f"check_outputs has {name}, which reads stored files, and needs an output_path"
            )

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of the outputs, empty without any.

        :raises FlowInputError: `check_outputs` is not valid.
        """
        if self.check_outputs is None:
            return ()
        from airflow_provider_flows.checks.definitions import to_checks  # not needed to define other tasks

        return to_checks(self.check_outputs)

    @property
    def max_reuse_age(self) -> float | None:
        """The maximum age of reused outputs in seconds; infinity for any age, None for no reuse.

        :raises FlowInputError: `reuse` is not valid.
        """
        return to_max_age(self.reuse)

    @property
    def file_naming(self) -> OutputName | None:
        """The pattern of the files' names, or None.

        :raises FlowInputError: `output_name` is not a valid pattern.
        """
        if self.output_name is None:
            return None
        from airflow_provider_flows.storage.paths import OutputName  # not needed to define a task

        return OutputName(self.output_name, self.inputs)

    def get_folder(self, run: FlowRun) -> ObjectStoragePath:
        """Return the folder of a run's files; `output_path` is not None."""
        from airflow_provider_flows.storage.paths import get_run_folder, to_object_path

        if self.folder_name is None:
            return get_run_folder(run, str(self.output_path), self.output_conn_id)
        return to_object_path(str(self.output_path), self.output_conn_id) / self.folder_name

    def validate(self, service: Service, problems: Problems | None = None) -> None:
        """Check that the service and the store support the options.

        :param problems: collects what is wrong, in place of an error.
        :raises FlowInputError: an option is not supported; the message names the argument.
        """
        from airflow_provider_flows.core.validation import collect_problems  # not needed to define a task
        from airflow_provider_flows.storage.paths import require_connection

        with collect_problems(problems) as collector:
            if self.delete_after_fetch and not service.supports("delete"):
                collector.add(
                    f"delete_after_fetch=True is not supported by {service.name}, which stores no runs"
                )
            if "output_name" not in collector.invalid:
                with collector.collect("output_name"):
                    self._validate_output_name()
            if self.output_conn_id is not None and "output_conn_id" not in collector.invalid:
                with collector.collect("output_conn_id"):
                    require_connection("output_conn_id", self.output_conn_id)
            if self.check_outputs is not None:
                from airflow_provider_flows.checks.requirements import find_missing_requirements

                collector.add(*find_missing_requirements(self.checks))
            if not collector.invalid & {"output_path", "output_conn_id"}:
                with collector.collect():
                    _require_writable("output_path", self.output_path, self.output_conn_id)
            if self.max_reuse_age is not None and not collector.invalid & {"reuse_path", "output_conn_id"}:
                with collector.collect():
                    _require_writable("reuse_path", self.reuse_path, self.output_conn_id)

    def _validate_output_name(self) -> None:
        naming = self.file_naming
        missing = [] if naming is None or self.inputs is None else naming.find_missing_keys()
        if missing:
            raise FlowInputError(
                f"output_name {self.output_name!r} has {{input.{missing[0]}}}, but no input has "
                f"{missing[0]!r} in its metadata (additional), and no variable is called so"
            )

    def selects(self, output: FlowOutput) -> bool:
        """Return whether an output is to be fetched."""
        return self.selection is None or output.asset_id in self.selection or output.name in self.selection


def _require_writable(name: str, output_path: Any, output_conn_id: str | None) -> None:
    """Check that files can be stored below a path, by writing a small one and removing it.

    :param name: the argument that has the path.
    :raises FlowInputError: the path is not an absolute path or a URI, no file system is installed for it, or
        the store does not accept a file. Only errors that may be temporary are not permanent.
    """
    if output_path is None:
        return
    if not isinstance(output_path, str):
        problem = describe_misplaced_task(name, output_path)
        actual = f"must be an absolute path or a URI, not {type(output_path).__name__}"
        raise FlowInputError(f"{name} {problem or actual}")
    from airflow_provider_flows.storage.atomic_file import write_probe
    from airflow_provider_flows.storage.paths import (
        LOCAL_SCHEMES,
        MACHINE_CREDENTIALS,
        explain_store_error,
        get_conn_id,
        require_connection,
        to_object_path,
        uses_machine_credentials,
    )

    problem = _find_path_problem(output_path)
    if problem is not None:
        raise FlowInputError(
            f"{name} {output_path!r} cannot be written to: {problem}. Set it to an absolute path or to "
            "a URI, such as '/data/flows', 'file:///data/flows' or 's3://bucket/flows'"
        )
    try:
        folder = to_object_path(output_path, output_conn_id)
        conn_id = get_conn_id(folder)
        if conn_id is not None and conn_id != output_conn_id:
            require_connection(f"the connection in the URI of {name}", conn_id)
        write_probe(folder)
    except (OSError, ValueError, ImportError, TypeError) as error:
        is_local = "://" not in output_path or output_path.partition("://")[0].lower() in LOCAL_SCHEMES
        problem = _describe_local_problem(error) if is_local else None
        remedy = "Set it to a folder in which tasks may create files"
        if problem is None:
            problem = explain_store_error(output_path, error)
            remedy = "Check its URI, its connection (output_conn_id) and its permissions"
            if output_conn_id is None and uses_machine_credentials(output_path):
                remedy = f"{MACHINE_CREDENTIALS.format(argument='output_conn_id')}; else check the URI"
        raise FlowInputError(
            f"{name} {output_path!r} cannot be written to: {problem}. {remedy}",
            is_permanent=not isinstance(error, OSError) or _is_permanent(error),
        ) from error


def _find_path_problem(output_path: str) -> str | None:
    """Return why a path is not the same folder for every process that uses it, None if it is."""
    from airflow_provider_flows.storage.paths import LOCAL_SCHEMES, WEB_SCHEMES

    if not output_path.strip():
        return "it is empty"
    scheme, separator, rest = output_path.partition(":")
    is_uri = bool(separator) and re.fullmatch(r"[A-Za-z][\w+.-]*", scheme) is not None
    if is_uri and scheme.lower() not in LOCAL_SCHEMES:
        is_web = scheme.lower() in WEB_SCHEMES
        return "it is the address of a web server, which does not store files" if is_web else None
    path = rest.removeprefix("//") if is_uri else output_path
    if path.startswith("~"):
        return "it starts with ~, which is not expanded, because each worker may have another home folder"
    if is_uri and rest.startswith("//") and not path.startswith("/"):
        host, _, folder = path.partition("/")
        return (
            f"it names a host, {host!r}; the URI of a local folder has three slashes: file:///{host}/{folder}"
        )
    if path.startswith("//"):
        return "it starts with too many slashes"
    return None if path.startswith("/") else "it is a relative path, another folder on each worker"


def _describe_local_problem(error: Exception) -> str | None:
    """Return why a folder of this machine cannot be written to, None if only the error itself says it."""
    errors = (error, error.__cause__)
    if any(isinstance(one, NotADirectoryError | FileExistsError) for one in errors):
        return "it, or a folder above it, is a file"
    if any(isinstance(one, FileNotFoundError) for one in errors):
        return "it does not exist and cannot be created"
    if any(isinstance(one, PermissionError) for one in errors):
        return f"the user of the task (uid {os.geteuid()}) is not permitted to write there"
    return None


def _is_permanent(error: OSError) -> bool:
    """Return whether a store would raise the same error in a retry. The cause is its library's own error."""
    errors = (error, error.__cause__)
    return error.errno in PERMANENT_ERRNOS or any(isinstance(one, PERMANENT_ERRORS) for one in errors)
