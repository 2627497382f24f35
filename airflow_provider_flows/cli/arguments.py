"""From command-line arguments to the hook's (inputs, parameters, paths, intervals), and back in messages."""

from __future__ import annotations

import json
import re
import shlex
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.validation import shorten, suggest_names
from airflow_provider_flows.storage.inputs import FORMS, build_request, describe_as_file_and_prompt
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, OutputOptions
from airflow_provider_flows.storage.paths import is_likely_path_or_uri

if TYPE_CHECKING:
    from airflow_provider_flows.core.start_or_resume import RunRequest
    from airflow_provider_flows.core.validation import Problems
    from airflow_provider_flows.hooks import FlowsHook

MAX_POLL_INTERVAL = 60.0  # seconds; as in the operator

INPUT_KEYS = ("data", "uri", "additional")  # of an --input that is a JSON object
_JSON_START = re.compile(r"""\s*(?:\{\s*["'}]|\[\s*["{\[\]])""")

# What messages for DAG authors call an argument, and what it is called here. A name in a path or between
# quotes is user data.
_OPTION_NAME = r"(?<![\w'\"/.-]){}(?![\w'\"/])"
_OPTIONS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (
        r"inputs must be a mapping of variable names to values[^{]*\{'color': 'red'\}",
        "the flow takes variables (--variable color=red), not --input",
    ),
    (
        r"inputs must be a list of prompts and files[^;]*; a mapping (?:of variables )?is for [^.;]*",
        "the flow takes prompts (-i 'A modern office chair') and files (-i @chair.png), not --variable",
    ),
    (
        r"inputs must hold at least one prompt or file",
        "there must be a prompt (-i 'A modern office chair') or a file (-i @chair.png)",
    ),
    (
        re.escape(f"it must be {FORMS}"),
        "it must be a prompt (-i 'A modern office chair') or a file (-i @chair.png)",
    ),
    (r"put them into inputs", "use --variable for them"),
    (r"which are passed as inputs", "which --variable sets"),
    (r"The file must exist on the worker that runs the task", "Check its name"),
    (
        r", and a relative path starts at the folder of its process",
        "; a relative path starts at the current folder",
    ),
    (r"Install (\S+) on each worker", r"Install \1"),
    (
        r"Set it to a folder in which tasks may create files",
        "Set it to a folder in which you may create files",
    ),
    (r"the user of the task \(uid (\d+)\)", r"your user (uid \1)"),
    (r"\binputs has more than", "--input was given more than"),
    (r"\binputs\[(\d+)\]", lambda match: f"--input #{int(match[1]) + 1}"),
    (r"\binputs\[(['\"])(.*?)\1\]", r"--variable \2"),
    (r"\bparameters\[(['\"])(.*?)\1\]", r"--param \2"),
    (r"\(output_path, save_output\)", "(--output-path)"),
    (r"larger than max_xcom_bytes \(", "larger than the maximum ("),
    (r"\bvalidate=False\b", "--no-validate"),
    (r"\bset validate=\"skip\"", "use --skip-invalid"),
    (r"\bset columns, such as columns=\{'chair_prompt': 'inputs'\}", "use --column chair_prompt=inputs"),
    (r"\bcolumns=\{(['\"])(.*?)\1: 'inputs'\}", r"--column \2=inputs"),
    (r"\bSet columns, with None for those to", "Use --column, with no field (NAME=) for those to"),
    (r"\bcolumns (?=has|is for)", "--column "),
    (r"\bmax_active_runs\b", "--max-active"),
    (r"\bincrease timeout\b", "increase --timeout"),
    (_OPTION_NAME.format("flows_conn_id"), "--conn-id"),
    (r"^state must be", "--state must be"),
    (r"^reuse needs an output_path or a reuse_path", "--reuse needs --output-path or --reuse-path"),
    (r"or remove reuse\b", "or remove --reuse"),
    (
        _OPTION_NAME.format(
            "(output_path|output_name|output_conn_id|input_conn_id|poll_interval|reuse_path|min_success_ratio"
            "|stop_after_failures|item_retries)"
        ),
        lambda match: "--" + match[1].replace("_", "-"),
    ),
)


def to_option_names(message: str) -> str:
    """Return a message in which each argument has the name of its command-line option."""
    for pattern, option in _OPTIONS:
        message = re.sub(pattern, option, message)
    return message


def parse_request(args: Namespace, problems: Problems, hook: FlowsHook) -> RunRequest:
    """Return the request that the arguments describe; nothing is sent to the service.

    :param problems: collects what cannot be sent.
    """
    arguments = (
        args.flow,
        _parse_inputs(args, problems),
        dict(args.param or ()),
        args.additional,
        args.input_conn_id,
    )
    return build_request(*arguments, problems, hook)


def reject_options_without_wait(args: Namespace) -> None:
    """Raise an error if an option needs the end of the run, and the command does not wait for it.

    :raises FlowInputError: nothing was sent.
    """
    options = {
        "--output-path": args.output_path,
        "--output-conn-id": args.output_conn_id,
        "--reuse": args.reuse or None,
    }
    for option, value in options.items():
        if args.no_wait and value is not None:
            message = (
                f"{option} cannot be combined with --no-wait: the command ends before the run has outputs. "
                "Remove one of the two; later, airflow flows download writes the outputs to files"
            )
            raise FlowInputError(message)


def parse_schedule(args: Namespace) -> Schedule:
    """Return the poll schedule, with a deadline counted from now.

    :raises FlowInputError: an interval is invalid.
    """
    deadline = None if args.timeout is None else time.time() + args.timeout
    return Schedule.of(args.poll_interval, MAX_POLL_INTERVAL, deadline)


def parse_output_options(args: Namespace) -> OutputOptions:
    """Return where files go; as in a DAG, a long text becomes a file, but only with an output path."""
    path = None if args.output_path is None else to_absolute(args.output_path)
    reuse_path = getattr(args, "reuse_path", None)
    asset_names = None if getattr(args, "asset", None) is None else frozenset(args.asset)
    return OutputOptions(
        path,
        args.output_conn_id,
        None if path is None else MAX_XCOM_BYTES,
        selection=asset_names,
        output_name=args.output_name,
        reuse=getattr(args, "reuse", False),
        reuse_path=None if reuse_path is None else to_absolute(reuse_path),
    )


def to_absolute(path_or_uri: str) -> str:
    """Return a path as an absolute one, and a URI as it is."""
    return path_or_uri if "://" in path_or_uri else str(Path(path_or_uri).expanduser().absolute())


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
    if text.strip() == "@":
        problems.add("--input @ has no file name after the @, as in --input @chair.png")
        return {"data": "not sent"}  # so that the other inputs are checked as well
    if text.startswith("@"):
        return {"uri": text[1:]} if "://" in text else Path(text[1:]).expanduser()
    if is_likely_path_or_uri(text):
        forms = describe_as_file_and_prompt(text)
        file, prompt = map(shlex.quote, forms)
        path = json.loads(forms[0])["uri"]
        problems.add(
            f"--input {path} resembles a path or a URI. For the file, write --input "
            f"{shlex.quote(f'@{path}')} or --input {file}; for a prompt, --input {prompt}"
        )
        return {"data": "not sent"}  # so that the other inputs are checked as well
    return _parse_json_input(text, problems)


def _parse_json_input(text: str, problems: Problems) -> Any:
    """Return an --input that is a JSON object with `data` or `uri`, or any other text as a prompt.

    A text that is nearly such an object, or a list, is a problem, because it would be sent, and paid for, as
    a prompt.
    """
    kind = "list" if text.lstrip().startswith("[") else "object"
    try:
        item = json.loads(text)
    except ValueError as error:
        item, problem = None, f"is not valid JSON ({error})"
    else:
        if isinstance(item, list):
            return _reject_json(text, "is a JSON list; each input is an --input of its own", problems)
        if not isinstance(item, dict):
            return text
        if item.keys() & {"data", "uri"}:
            return item
        hints = [f"{name!r}{hint}" for name in item if (hint := suggest_names(name, INPUT_KEYS))]
        if not hints:  # a prompt may be a JSON object
            return text
        problem = f"has neither data nor uri, but {', '.join(hints)}"
    if not _JSON_START.match(text):
        return text
    return _reject_json(text, f"starts like a JSON {kind}, and {problem}", problems)


def _reject_json(text: str, problem: str, problems: Problems) -> Any:
    """Add the problem of an --input that is, or starts like, JSON; return what is checked in its place."""
    as_prompt = shlex.quote(json.dumps({"data": shorten(text)}, ensure_ascii=False))
    problems.add(
        f"--input {shlex.quote(shorten(text))} {problem}. To send the text as it is, write --input "
        f"{as_prompt}"
    )
    return {"data": "not sent"}
