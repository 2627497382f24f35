"""The commands about the index of outputs that are reused: list and forget."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from airflow_provider_flows.cli.arguments import to_absolute
from airflow_provider_flows.cli.command import command
from airflow_provider_flows.cli.parser import Exit
from airflow_provider_flows.cli.terminal import confirm, echo_err, is_interactive, show_many
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.reuse import ReuseEntry
from airflow_provider_flows.storage.paths import require_connection
from airflow_provider_flows.storage.reuse_index import ReuseIndex

COLUMNS = ("saved_at", "flow", "service", "flow_run_id", "outputs", "size", "fingerprint")


@command
def list(args: Namespace) -> None:  # noqa: A001  # named like the command
    """Print the entries of an index, oldest first."""
    entries = sorted(_read_entries(_open_index(args), args), key=lambda entry: entry.saved_at)
    show_many([_to_row(entry) for entry in entries], args.output, COLUMNS)


@command
def forget(args: Namespace) -> Exit | None:
    """Delete the entries of an index after confirmation."""
    index = _open_index(args)
    entries = [*_read_entries(index, args)]
    if entries and not args.yes:
        if not is_interactive():
            message = "forget asks for confirmation, and there is no terminal to ask at; use --yes"
            raise FlowInputError(message)
        if not confirm(f"Forget the outputs of {len(entries)} flow runs in {args.path}? Their files remain."):
            echo_err("Nothing was forgotten.")
            return Exit.FAILED
    for entry in entries:
        index.forget(entry)
    show_many([_to_row(entry) for entry in entries], args.output, COLUMNS)
    return None


def _open_index(args: Namespace) -> ReuseIndex:
    if args.output_conn_id is not None:
        require_connection("output_conn_id", args.output_conn_id)
    return ReuseIndex(str(to_absolute(args.path)), args.output_conn_id)


def _read_entries(index: ReuseIndex, args: Namespace) -> Iterator[ReuseEntry]:
    latest = float("inf") if args.older_than is None else time.time() - args.older_than.total_seconds()
    for entry in index:
        if entry.saved_at <= latest and args.flow in {None, entry.run.flow}:
            yield entry


def _to_row(entry: ReuseEntry) -> dict[str, Any]:
    saved_at = datetime.fromtimestamp(entry.saved_at, UTC).isoformat(timespec="seconds")
    return {"saved_at": saved_at, **entry.to_summary()}
