"""The `inputs` of a flow run: parsed into prompts, files, outputs of other runs and variables, and loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import ERROR, PENDING, FlowInput, FlowState
from airflow_provider_flows.core.limits import MAX_DATA_URI_BYTES, MAX_INPUTS, MAX_TEXT_INPUT_BYTES
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.payload.integrity import identify_content
from airflow_provider_flows.core.redaction import find_signatures, redact_path
from airflow_provider_flows.core.start_or_resume import RunRequest
from airflow_provider_flows.core.template_problems import (
    RUN_KEYS,
    describe_misplaced_task,
    find_misplaced_tasks,
)
from airflow_provider_flows.core.validation import Problems, collect_problems, shorten
from airflow_provider_flows.storage.file_source import (
    FileAccess,
    InputHook,
    encode_content,
    load_file,
    load_text_file,
    load_variable_file,
)
from airflow_provider_flows.storage.paths import is_likely_path_or_uri, require_connection

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import Inputs

_BASE64_DATA_URI = re.compile(r"\s*data:(?:[^,\s]*[;,])?base64[,;]", re.IGNORECASE)
FORMS = (
    "a prompt, a pathlib.Path, an ObjectStoragePath, a dict with 'data' or 'uri', or the result of another "
    "task that ran a flow"
)
MAX_SHOWN_LENGTH = 200  # characters of a text in a message
_OUTPUT_KEYS = frozenset(
    {"name", "asset_id", "status", "media_type"}
)  # of `FlowOutput.to_dict`, always present
_INPUT_KEYS = _OUTPUT_KEYS | {"data", "uri", "additional", "size", "sha256"}  # of an input written by hand


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, or a data URI unless it is a bare string."""

    text: str
    additional: Any = None


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file, by a URI, a pathlib.Path or an ObjectStoragePath.

    :param sha256: the hexadecimal digest that the file must have, None for any.
    """

    file: Any
    additional: Any = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class UpstreamOutput:
    """An output of another flow run, in the form of `FlowOutput.to_dict`."""

    output: Mapping[str, Any]

    def resolve(self, where: str) -> Prompt | FileRef:
        """Return the output's file, or its text.

        :raises FlowInputError: the output has neither. A link does not count, because it expires.
        """
        output = self.output
        uri, value, additional = output.get("uri"), output.get("value"), output.get("additional")
        subject = f"{where} refers to output {output['name']!r} of another flow run. That output"
        if output["status"] == ERROR:
            reason = output.get("error") or "the service gave no reason"
            raise FlowInputError(
                f"{subject} failed ({reason}). Remove it from inputs, or run the task that produced it again"
            )
        if isinstance(uri, str):
            return FileRef(uri, additional, output.get("sha256"))
        if isinstance(value, str) and str(output["media_type"] or "text/").startswith("text/"):
            return Prompt(value, additional)
        reason = (
            "was not ready when the task that ran the flow ended"
            if output["status"] == PENDING
            else "has no file, because the task that ran the flow did not store it"
        )
        raise FlowInputError(f"{subject} {reason}. Set output_path on that task and run it again")


ParsedInput = Prompt | FileRef | UpstreamOutput


class _UnreadInput:
    """A placeholder for an input that was not read, so that the others have their index. It is never sent."""

    media_type = "application/octet-stream"  # an unknown type, which is acceptable to every flow
    size = 0
    digest = ""

    def chunks(self) -> Iterator[bytes]:
        """Raise FlowInputError."""
        raise FlowInputError("An input that was not read cannot be sent")


def build_request(  # noqa: PLR0917  # the order of arguments is that of all methods that start a run
    flow: Any,
    inputs: Any,
    parameters: Any,
    additional: Any,
    input_conn_id: str | None,
    problems: Problems,
    hook: InputHook | None = None,
    *,
    reads_files: bool = True,
) -> RunRequest:
    """Return the request for a run. Files are read once, and nothing is sent to the service.

    :param input_conn_id: the Airflow connection of the storage of input files.
    :param problems: collects what is wrong. A request with problems can be validated, but not sent.
    :param hook: as for `parse_inputs`, and `reads_files` too.
    """
    flow_name = flow.strip() if isinstance(flow, str) else ""
    if not flow_name:
        actual = repr(flow) if flow is None or isinstance(flow, str) else type(flow).__name__
        problem = describe_misplaced_task("flow", flow) or f"must be the name or id of a flow, not {actual}"
        problems.add(f"flow {problem}", invalidates="flow")
    if parameters is not None and not isinstance(parameters, Mapping):
        message = (
            f"parameters must be a mapping such as {{'quality': 'low'}}, not {type(parameters).__name__}"
        )
        problems.add(message, invalidates="parameters")
        parameters = None
    for name, value in (("parameters", parameters), ("additional", additional)):
        with problems.collect():
            validate_json_value(name, value)
    _mask_signatures(inputs, parameters, additional)
    parsed = parse_inputs(inputs, input_conn_id, problems, hook, reads_files=reads_files)
    return RunRequest(flow_name, parsed, parameters, additional)


def parse_inputs(
    inputs: Any,
    input_conn_id: str | None = None,
    problems: Problems | None = None,
    hook: InputHook | None = None,
    *,
    reads_files: bool = True,
) -> Inputs:
    """Return the `inputs` of an operator or hook as a list of inputs, or as a dict of variables.

    * A string is a prompt and never names a file, because it may come from a table or from the conf of a DAG
      run. One that is, or looks like, a path or a URI is rejected, because its author may have meant a file.
    * A `pathlib.Path` or an ObjectStoragePath names a file.
    * A dict with `data` (a prompt or a data URI) or `uri` (a file) is one input, with `additional` as its
      metadata.
    * An output of another flow run is its file or its text. The dict that a task returns is all its outputs.
    * Any other mapping contains variables, whose values may be outputs that are texts, and files where the
      service takes them (`Service.accepts_file_variables`), in lists too. For a service whose inputs are
      variables (PromptChainer) every mapping does, whatever the variables are called.

    Files are read once, and nothing is sent to the service. The bounds are those of core.limits.

    :param input_conn_id: the Airflow connection of the storage of input files.
    :param problems: collects, by input, what is wrong and what is accepted, in place of an error.
    :param hook: the hook of the service, which also fetches files from URLs.
    :param reads_files: whether to read files. Inputs without them can be validated, but not sent.
    :raises FlowInputError: an input cannot be sent, and `problems` is None.
    """
    access = FileAccess(input_conn_id, hook) if reads_files else None
    has_variables = hook is not None and hook.service.has_variables
    with collect_problems(problems) as collector:
        if not _is_usable_connection(input_conn_id, collector):
            return {} if has_variables else []
        if _is_variables(inputs, has_variables=has_variables):
            accepts_files = hook is not None and hook.service.accepts_file_variables
            return _load_variables(inputs, access, collector, accepts_files=accepts_files)
        items = inputs if _is_list(inputs) else [] if inputs is None else [inputs]
        return list(_load_items(items, access, collector))


def _is_usable_connection(input_conn_id: str | None, problems: Problems) -> bool:
    """Return whether inputs can be read; add a problem if their connection is unknown."""
    if input_conn_id is not None and "input_conn_id" not in problems.invalid:
        with problems.collect("input_conn_id"):
            require_connection("input_conn_id", input_conn_id)
    if "input_conn_id" not in problems.invalid:
        return True
    problems.invalid.add("inputs")
    return False


def iter_texts(argument: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield pairs of a place in a task's argument, such as `inputs[0]`, and the text there.

    Metadata (`additional`) and the `data` of a dict are left out, because they may be any text.
    """
    if argument != "inputs" or _is_variables(value) or _is_list(value):
        yield from _iter_nested_texts(argument, value)
    else:
        yield from _iter_nested_texts("inputs[0]", value)


def _iter_nested_texts(where: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) or is_path(value):
        yield where, str(value)
    elif isinstance(value, Mapping):
        is_item = where.startswith("inputs") and _is_item(value)
        for key, one in value.items():
            if not (is_item and key in {"data", "additional"}):
                yield from _iter_nested_texts(f"{where}[{key!r}]", one)
    elif _is_list(value):
        for index, one in enumerate(value):
            yield from _iter_nested_texts(f"{where}[{index}]", one)


def _load_variables(
    inputs: Mapping[Any, Any], access: FileAccess | None, problems: Problems, *, accepts_files: bool
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if len(inputs) > MAX_INPUTS:
        problems.add(_too_many_inputs(), invalidates="inputs")
        return values
    for name, value in inputs.items():
        values[str(name)] = ""
        if (where := f"inputs[{name!r}]") in problems.invalid:
            continue
        with problems.collect(where):
            values[str(name)] = _load_variable(where, value, access, accepts_files=accepts_files)
    return values


def _load_variable(where: str, value: Any, access: FileAccess | None, *, accepts_files: bool) -> Any:
    """Return the text or file of an output, a path, or a dict with `data` or `uri`, or else the value itself.

    The items of a list are read in the same way.

    :raises FlowInputError: a file cannot be read, or the service takes no files in variables.
    """
    if (problem := describe_misplaced_task(where, value)) is not None:
        raise FlowInputError(f"{where} {problem}")
    if isinstance(value, str):
        _validate_length(where, value)
    if _is_list(value):
        if len(value) > MAX_INPUTS:
            raise FlowInputError(f"{where} has more than {MAX_INPUTS} items")
        return [
            one
            if _is_list(one)
            else _load_variable(f"{where}[{index}]", one, access, accepts_files=accepts_files)
            for index, one in enumerate(value)
        ]
    if not is_path(value) and not (isinstance(value, Mapping) and _is_item(value)):
        return value
    content = _resolve(where, _parse_item(where, value))
    if isinstance(content, Prompt):
        return content.text
    if access is None:
        return ""
    load = load_variable_file if accepts_files else load_text_file
    return load(where, content.file, access, content.sha256)


def _load_items(inputs: Sequence[Any], access: FileAccess | None, problems: Problems) -> Iterator[FlowInput]:
    items: list[tuple[str, Any]] = []
    for index, value in enumerate(inputs):
        with problems.collect("inputs"):  # their number is unknown after an error
            items += _expand_outputs(f"inputs[{index}]", value)
        if len(items) > MAX_INPUTS:
            problems.add(_too_many_inputs(), invalidates="inputs")
            return
    for where, item in items:
        flow_input = FlowInput(_UnreadInput())
        if where not in problems.invalid:
            with problems.collect(where):
                flow_input = _load_item(where, item, access, problems)
        yield flow_input


def _too_many_inputs() -> str:
    return (
        f"inputs has more than {MAX_INPUTS} items. Distribute them over several tasks, for example by mapping"
    )


def _load_item(where: str, item: Any, access: FileAccess | None, problems: Problems) -> FlowInput:
    if isinstance(item, Mapping) and _is_item(item):
        with problems.collect():
            validate_json_value(f"{where}['additional']", item.get("additional"))
    content = _resolve(where, _parse_item(where, item))
    if isinstance(content, Prompt):
        return FlowInput(_normalize_text(where, content.text), content.additional)
    data = _UnreadInput() if access is None else load_file(where, content.file, access, content.sha256)
    return FlowInput(data, content.additional)


def get_file_uris(inputs: Any, *, has_variables: bool = False) -> list[str]:
    """Return the URIs of the files among the `inputs` of an operator or hook, without reading them.

    Prompts and inputs that would be rejected have none.

    :param has_variables: whether every mapping contains variables, as for `parse_inputs`.
    """
    is_variables = _is_variables(inputs, has_variables=has_variables)
    values = inputs.values() if is_variables else inputs if _is_list(inputs) else [inputs]
    items = [
        item
        for value in values
        for item in (value["outputs"] if _is_run(value) else value if _is_list(value) else [value])
    ]
    uris = [_get_file_uri(item) for item in items]
    return [uri for uri in uris if uri is not None]


def _get_file_uri(item: Any) -> str | None:
    if isinstance(item, Mapping):
        uri = item.get("uri") if _is_item(item) else None
        return uri if isinstance(uri, str) else None
    if isinstance(item, PurePath) and not hasattr(item, "protocol"):
        return f"file://{Path(item).absolute()}"
    if is_path(item):
        text = str(item)
        return text if "://" in text else f"file://{text}"
    return None


def _is_variables(inputs: Any, *, has_variables: bool = False) -> bool:
    """Return whether a mapping contains variables. A task's result has a list, which no variable is."""
    return isinstance(inputs, Mapping) and (has_variables or not _is_item(inputs)) and not _is_run(inputs)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def is_path(value: Any) -> bool:
    """Return whether a value is a path, which an ObjectStoragePath is without being an os.PathLike."""
    return isinstance(value, os.PathLike) or callable(getattr(value, "open", None))


def _is_item(value: Mapping[str, Any]) -> bool:
    """Return whether a mapping is one input. Variables named `data` or `uri` have other keys as well."""
    return _is_output(value) or (bool(value.keys() & {"data", "uri"}) and value.keys() <= _INPUT_KEYS)


def _is_output(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() >= _OUTPUT_KEYS


def _is_run(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() >= RUN_KEYS and _is_list(value["outputs"])


def _expand_outputs(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the outputs of a flow run, or of a list of outputs, or any other value as it is."""
    outputs = value["outputs"] if _is_run(value) else value
    if _is_run(value) and not outputs:
        raise FlowInputError(_no_outputs_message(where, value))
    if _is_run(value) or (_is_list(value) and value and all(map(_is_output, value))):
        prefix = f"{where}['outputs']" if _is_run(value) else where
        yield from ((f"{prefix}[{index}]", output) for index, output in enumerate(outputs))
    else:
        yield where, value


def _no_outputs_message(where: str, run: Mapping[str, Any]) -> str:
    flow_run_id, state = run["flow_run_id"], run.get("state")
    if FlowState.parse(state).is_final:
        return (
            f"{where}: flow run {flow_run_id} ({state}) produced no outputs; "
            "remove it from inputs or check the run"
        )
    return (
        f"{where} is the flow run {flow_run_id}, which had no outputs when its task ended ({state}): "
        "the upstream task did not wait for it. Set wait_for_completion=True on that task"
    )


def _parse_item(where: str, item: Any) -> ParsedInput:
    """Parse one input.

    :raises FlowInputError: it has none of the accepted forms.
    """
    if isinstance(item, str):
        return _parse_text_input(where, item)
    if is_path(item):
        return FileRef(item)
    if _is_output(item):
        return UpstreamOutput(item)
    if isinstance(item, Mapping) and _is_item(item):
        return _parse_dict(where, item)
    type_name = f"a dict with {sorted(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
    problem = describe_misplaced_task(where, item) or f"must be {FORMS}, not {type_name}"
    raise FlowInputError(f"{where} {problem}")


def _parse_text_input(where: str, text: str) -> Prompt:
    if is_likely_path_or_uri(text):
        file, prompt = describe_as_file_and_prompt(text)
        raise FlowInputError(
            f"{where} is a string that looks like a path or a URI. A string is a prompt and never names "
            f"a file. To upload the file, write {file} or a pathlib.Path; to send the text as it is, {prompt}"
        )
    return Prompt(text)


def describe_as_file_and_prompt(text: str) -> tuple[str, str]:
    """Return the two inputs that a string that looks like a path or a URI can mean, as JSON for a message.

    Credentials are removed, and a long text is cut.
    """
    shown = shorten(redact_path(text.strip()), MAX_SHOWN_LENGTH)
    file, prompt = (json.dumps({key: shown}, ensure_ascii=not shown.isprintable()) for key in ("uri", "data"))
    return file, prompt


def _parse_dict(where: str, item: Mapping[str, Any]) -> Prompt | FileRef:
    uri, data = item.get("uri"), item.get("data")
    if uri is None and data is None and len(names := [name for name in ("data", "uri") if name in item]) == 1:
        raise FlowInputError(f"{where}[{names[0]!r}] must be a string, not None")
    if (uri is None) == (data is None):
        raise FlowInputError(f"{where} must have exactly one of 'data' and 'uri'")
    key, value = ("data", data) if uri is None else ("uri", uri)
    if not isinstance(value, str):
        raise FlowInputError(f"{where}[{key!r}] must be a string, not {type(value).__name__}")
    additional = item.get("additional")
    return Prompt(value, additional) if uri is None else FileRef(value, additional, item.get("sha256"))


def _resolve(where: str, parsed: ParsedInput) -> Prompt | FileRef:
    return parsed.resolve(where) if isinstance(parsed, UpstreamOutput) else parsed


def _normalize_text(where: str, text: str) -> str:
    """Return a prompt as it is, and a data URI in its documented form (vendor_notes.md, G-10 and G-12)."""
    if not text.strip():
        raise FlowInputError(f"{where} is blank; it must be {FORMS}")
    if text.lstrip()[:5].lower() != "data:":
        _validate_length(where, text)
        return text
    _validate_length(where, text, MAX_DATA_URI_BYTES)
    try:
        content = data_uri.decode(text)
    except ValueError as error:
        if not _BASE64_DATA_URI.match(text):  # a prompt that starts like a data URI
            _validate_length(where, text)
            return text
        raise FlowInputError(f"{where} is a data URI that cannot be decoded: {error}") from None
    return encode_content(where, identify_content(where, content))


def _validate_length(where: str, text: str, maximum: int = MAX_TEXT_INPUT_BYTES) -> None:
    if len(text) > maximum or (len(text) * 4 > maximum and len(text.encode(errors="replace")) > maximum):
        kind = "text" if maximum == MAX_TEXT_INPUT_BYTES else "data URI"
        raise FlowInputError(f"{where} is a {kind} of more than {maximum} bytes, which is too long")


def _mask_signatures(*values: Any) -> None:
    """Mask the signatures of URLs in Airflow's logs. The values themselves remain as they are."""
    from airflow.providers.common.compat.sdk import mask_secret

    with suppress(ValueError, TypeError, RecursionError):  # the values are validated elsewhere
        for secret in find_signatures(json.dumps(values, default=str, skipkeys=True)):
            mask_secret(secret)


def validate_json_value(where: str, value: Any) -> None:
    """Check that a value can be sent as JSON.

    :param where: the argument that has the value, for the message.
    :raises FlowInputError: JSON cannot represent the value.
    """
    if problem := next(find_misplaced_tasks(where, value), None):
        raise FlowInputError(problem)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FlowInputError(f"{where} cannot be sent as JSON: {error}") from error
