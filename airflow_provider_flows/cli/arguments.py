"""From what stands on the command line to what the hook takes: inputs, parameters, paths, intervals.

It reads no files (inputs.py does) and sends nothing.
"""

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
    from airflow_provider_flows.core.problems import Problems
    from airflow_provider_flows.core.start import RunRequest

MAX_POLL_INTERVAL = 60.0  # seconds; the operator's default


def parse_request(args: Namespace, problems: Problems) -> RunRequest:
    """Read what is to be started; nothing is sent.

    :param findings: takes what cannot be sent.
    """
    given = (
        args.flow,
        _parse_inputs(args, problems),
        dict(args.param or ()),
        args.additional,
        args.input_conn_id,
    )
    return build_request(*given, problems)


def parse_schedule(args: Namespace) -> Schedule:
    """Read how often it looks, and until when, counted from now.

    :raises FlowInputError: that cannot be kept.
    """
    deadline = None if args.timeout is None else time.time() + args.timeout
    return Schedule.of(args.poll_interval, MAX_POLL_INTERVAL, deadline)


def parse_output_options(args: Namespace) -> OutputOptions:
    """Read where files go. A long text becomes a file as it does in a DAG, but only where files are wanted."""
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
        message = "--input and --variable do not go together: a flow takes inputs (Generio's do) or variables (PromptChainer's)"
        problems.add(message, invalidates="inputs")
    return dict(args.variable)


def _parse_input(text: str, problems: Problems) -> Any:
    """Read one --input; what its help says."""
    if text.startswith("@"):
        return Path(text[1:]).expanduser()
    if is_likely_path(text):
        prompt = json.dumps({"data": text})
        problems.add(
            f"--input {text} looks like a path. For the file write --input @{text}; for a prompt, --input {json.dumps(prompt)}"
        )
        return json.loads(prompt)
    try:
        item = json.loads(text)
    except ValueError:
        return text
    return item if isinstance(item, dict) and item.keys() & {"data", "uri"} else text
