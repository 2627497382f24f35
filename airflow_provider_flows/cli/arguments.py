"""From command-line arguments to the hook's: inputs, parameters, paths, intervals."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.storage.inputs import build_request, is_likely_path
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, OutputOptions

if TYPE_CHECKING:
    from airflow_provider_flows.core.start_or_resume import RunRequest
    from airflow_provider_flows.core.validation import Problems

MAX_POLL_INTERVAL = 60.0  # seconds; as in the operator


def parse_request(args: Namespace, problems: Problems) -> RunRequest:
    """Return the request that the arguments describe; nothing is sent.

    :param problems: collects what cannot be sent.
    """
    arguments = (
        args.flow,
        _parse_inputs(args, problems),
        dict(args.param or ()),
        args.additional,
        args.input_conn_id,
    )
    return build_request(*arguments, problems)


def parse_schedule(args: Namespace) -> Schedule:
    """Return the poll schedule, with a deadline counted from now.

    :raises FlowInputError: an interval is invalid.
    """
    deadline = None if args.timeout is None else time.time() + args.timeout
    return Schedule.of(args.poll_interval, MAX_POLL_INTERVAL, deadline)


def parse_output_options(args: Namespace) -> OutputOptions:
    """Return where files go; as in a DAG, a long text becomes a file, but only with an output path."""
    path = args.output_path
    if path is not None and "://" not in path:
        path = str(Path(path).expanduser().absolute())
    asset_names = None if getattr(args, "asset", None) is None else frozenset(args.asset)
    return OutputOptions(
        path, args.output_conn_id, None if path is None else MAX_XCOM_BYTES, selection=asset_names
    )


def _parse_inputs(args: Namespace, problems: Problems) -> Any:
    if args.variable is None:
        return [_parse_input(text, problems) for text in args.input or ()]
    if args.input is not None:
        message = (
            "--input and --variable are exclusive: Generio's flows take inputs, PromptChainer's variables"
        )
        problems.add(message, invalidates="inputs")
    return dict(args.variable)


def _parse_input(text: str, problems: Problems) -> Any:
    """Return one --input, in the forms that its help lists."""
    if text.startswith("@"):
        return Path(text[1:]).expanduser()
    if is_likely_path(text):
        prompt = json.dumps({"data": text})
        problems.add(
            f"--input {text} resembles a path. For the file, write --input @{text}; "
            f"for a prompt, --input {json.dumps(prompt)}"
        )
        return json.loads(prompt)
    try:
        item = json.loads(text)
    except ValueError:
        return text
    return item if isinstance(item, dict) and item.keys() & {"data", "uri"} else text
