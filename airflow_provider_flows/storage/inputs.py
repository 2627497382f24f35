"""From what a DAG author writes to what is sent: which string is a prompt or a file, which dict another run's outputs.

It reads no files (sources.py does), sends nothing and does not decide what a service takes (flow/services do).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.redaction import find_signatures, redact_path
from airflow_provider_flows.core.run import ERROR, PENDING, FlowInput, UploadSource
from airflow_provider_flows.core.validation import Problems, collect_problems
from airflow_provider_flows.storage.file_source import encode_content, file_data, file_text

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import Inputs
    from airflow_provider_flows.core.start import RunRequest

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")  # one word with a scheme, and nothing else
# one word that only a path looks like, or the name of a file of a kind that flows take
_PATH = re.compile(
    r"(?:~|\.{1,2})?/\S*|[A-Za-z]:[\\/]\S*|\S+\.(?:png|jpe?g|tiff?|webp|bmp|gif|glb|gltf)", re.IGNORECASE
)
FORMS = (
    "a prompt, the URI of a file (file:///..., s3://...), a pathlib.Path, a dict with 'data' or 'uri', or what such a "
    "task returned"
)
_RUN_KEYS = frozenset({"flow_run_id", "outputs"})  # keys of the dict that a task returns (FlowRun.as_dict)
_OUTPUT_KEYS = frozenset(
    {"name", "asset_id", "status", "media_type"}
)  # keys that each output in it has (FlowOutput.as_dict)
_INPUT_KEYS = _OUTPUT_KEYS | {
    "data",
    "uri",
    "additional",
    "size",
    "sha256",
}  # what one who writes an input by hand may use


class _UnreadableInput:
    """Stands in the place of an input that could not be read, so that the others keep theirs; it is never sent."""

    media_type = "application/octet-stream"  # which says of a file that nobody knows what it is
    size = 0
    digest = ""

    def chunks(self) -> Iterator[bytes]:
        """Refuse."""
        message = "An input that could not be read cannot be sent"
        raise FlowInputError(message)


def build_request(  # noqa: PLR0917  # what a start takes, in the order that all who start have it
    flow: Any, inputs: Any, parameters: Any, additional: Any, conn_id: str | None, problems: Problems
) -> RunRequest:
    """Read the arguments of a start; files are read once here, nothing is sent.

    :param problems: takes what cannot be sent; an order with any is good for nothing but to be checked further.
    """
    from airflow_provider_flows.core.start import RunRequest

    flow_name = flow.strip() if isinstance(flow, str) else ""
    if not flow_name:
        problems.add(f"flow must be the name or id of a flow, not {flow!r}", invalidates="flow")
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
    return RunRequest(flow_name, parse_inputs(inputs, conn_id, problems), parameters, additional)


def parse_inputs(inputs: Any, conn_id: str | None = None, problems: Problems | None = None) -> Inputs:
    """Read the `inputs` of an operator or hook; files are read once here, and nothing was sent when this raises.

    * a string that is one URI (`scheme://...` without white space) names a file, read through ObjectStoragePath;
      any other string is a prompt, sent as it is; one that can only be meant as a path is refused;
    * a `pathlib.Path` or ObjectStoragePath names a file;
    * a dict with `data` (a prompt, or a data URI) or `uri` (a file), and perhaps `additional`, is one input with metadata;
    * an output of another flow run stands for its file or its text, and the dict that such a task returns for all its outputs;
    * any other mapping holds variables (PromptChainer), whose values may be outputs that are texts.

    :param conn_id: the Airflow connection of the storage that file URIs lie in.
    :param problems: takes each item that cannot be sent: its name, what is wrong with it, and what would do.
    :raises FlowInputError: the same without `problems`.
    """
    with collect_problems(problems) as collector:
        if isinstance(inputs, Mapping) and not _is_item(inputs) and not _is_run(inputs):
            return _parse_variables(inputs, conn_id, collector)
        return list(
            _parse_items(
                inputs if _is_list(inputs) else [] if inputs is None else [inputs], conn_id, collector
            )
        )


def _parse_variables(inputs: Mapping[Any, Any], conn_id: str | None, problems: Problems) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in inputs.items():
        values[str(name)] = ""
        with problems.collect(where := f"inputs[{name!r}]"):
            values[str(name)] = _parse_variable(where, value, conn_id)
    return values


def _parse_items(inputs: Sequence[Any], conn_id: str | None, problems: Problems) -> Iterator[FlowInput]:
    for index, value in enumerate(inputs):
        each: list[tuple[str, Any]] = []
        with problems.collect("inputs"):  # how many they are is not known then
            each = list(_expand_outputs(f"inputs[{index}]", value))
        for where, item in each:
            flow_input = FlowInput(_UnreadableInput())
            with problems.collect(where):
                flow_input = _parse_item(where, item, conn_id, problems)
            yield flow_input


def get_file_uris(inputs: Any) -> list[str]:
    """Give the URIs of the files among such `inputs`, without reading any; a prompt has none, nor has what would be refused."""
    variables = isinstance(inputs, Mapping) and not _is_item(inputs) and not _is_run(inputs)
    values = inputs.values() if variables else inputs if _is_list(inputs) else [inputs]
    items = [
        item
        for one in values
        for item in (one["outputs"] if _is_run(one) else one if _is_list(one) else [one])
    ]
    found = (_get_file_uri(item, allow_text_uri=not variables) for item in items)
    return [uri for uri in found if uri is not None]


def _get_file_uri(item: Any, *, allow_text_uri: bool) -> str | None:
    """Give the URI of one input's file, None if it is none.

    :param allow_text_uri: whether a text may name a file; a variable's is always a text.
    """
    if isinstance(item, Mapping):
        uri = item.get("uri") if _is_item(item) else None
        return uri if isinstance(uri, str) else None
    if isinstance(item, PurePath) and not hasattr(item, "protocol"):
        return f"file://{Path(item).absolute()}"
    if isinstance(item, os.PathLike) or callable(getattr(item, "open", None)):
        text = str(item)
        return text if "://" in text else f"file://{text}"
    return item.strip() if allow_text_uri and isinstance(item, str) and _URI.fullmatch(item.strip()) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_item(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is one input; variables that happen to be called `data` or `uri` are told apart by their company."""
    return _is_output(value) or (bool(value.keys() & {"data", "uri"}) and value.keys() <= _INPUT_KEYS)


def _is_output(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() >= _OUTPUT_KEYS


def _is_run(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() >= _RUN_KEYS and _is_list(value["outputs"])


def _expand_outputs(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Give a flow run's outputs one by one, and a list of them (as mapped tasks give it); anything else as it is."""
    outputs = value["outputs"] if _is_run(value) else value
    if _is_run(value) and not outputs:
        message = (
            f"{where} is the flow run {value['flow_run_id']}, which had no outputs when its task ended ({value.get('state')}). "
            "A task whose outputs another one takes must wait for its flow run"
        )
        raise FlowInputError(message)
    if _is_run(value) or (_is_list(value) and value and all(map(_is_output, value))):
        label = f"{where}['outputs']" if _is_run(value) else where
        yield from ((f"{label}[{index}]", output) for index, output in enumerate(outputs))
    else:
        yield where, value


def _parse_item(where: str, item: Any, conn_id: str | None, problems: Problems) -> FlowInput:
    if isinstance(item, str):
        return FlowInput(_parse_string(where, item, conn_id))
    if isinstance(item, os.PathLike) or callable(
        getattr(item, "open", None)
    ):  # an ObjectStoragePath is no os.PathLike
        return FlowInput(file_data(where, item, conn_id))
    if isinstance(item, Mapping) and _is_item(item):
        with problems.collect():
            validate_json_value(f"{where}['additional']", item.get("additional"))
        uri, data = _get_uri_or_text(where, item)
        if uri is None:
            return FlowInput(_normalize_text(where, data), item.get("additional"))
        return FlowInput(_verify_sha256(where, item, file_data(where, uri, conn_id)), item.get("additional"))
    type_name = f"a dict with {sorted(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
    message = f"{where} must be {FORMS}, not {type_name}"
    raise FlowInputError(message)


def _get_uri_or_text(where: str, item: Mapping[str, Any]) -> tuple[str | None, str]:
    """Give the URI of a dict's file, or None and its text."""
    if _is_output(item):
        return _get_output_uri_or_text(where, item)
    uri, data = item.get("uri"), item.get("data")
    if (uri is None) == (data is None):
        message = f"{where} must have either 'data' or 'uri', not both"
        raise FlowInputError(message)
    key, value = ("data", data) if uri is None else ("uri", uri)
    if not isinstance(value, str):
        message = f"{where}[{key!r}] must be text, not {type(value).__name__}"
        raise FlowInputError(message)
    return uri, str(data)


def _get_output_uri_or_text(where: str, output: Mapping[str, Any]) -> tuple[str | None, str]:
    """Give the URI of the file that an output is, or None and the text that it is; a link, which ends, is neither."""
    uri, value = output.get("uri"), output.get("value")
    description = f"{where} is the output {output['name']!r} of another flow run, "
    if output["status"] == ERROR:
        reason = output.get("error") or "no reason was given"
        message = f"{description}which was not made ({reason}). Leave it out, or run it again"
        raise FlowInputError(message)
    if isinstance(uri, str):
        return uri, ""
    if isinstance(value, str) and str(output["media_type"] or "text/").startswith("text/"):
        return None, value
    why = (
        "was not ready when its task ended"
        if output["status"] == PENDING
        else "has no file: it stayed at the service"
    )
    message = f"{description}which {why}. Set output_path on the task that ran it, and run that again"
    raise FlowInputError(message)


def _verify_sha256(where: str, item: Mapping[str, Any], content: str | UploadSource) -> str | UploadSource:
    """Give a file that another task wrote, if it is still that; one that is converted here cannot be compared."""
    if not item.get("sha256") or (isinstance(content, str) and content.startswith("data:")):
        return content
    digest = hashlib.sha256(content.encode()).hexdigest() if isinstance(content, str) else content.digest
    if digest != item["sha256"]:
        message = (
            f"{where} names a file that is not what the task wrote that made it ({redact_path(str(item['uri']))}): its SHA-256 is "
            "another one. Run that task again, or give the file's URI alone if the change is meant"
        )
        raise FlowInputError(message)
    return content


def _parse_variable(where: str, value: Any, conn_id: str | None) -> Any:
    """Give the text of an output, or of a dict with `data` or `uri`; whether another value will do is for the service to say."""
    if not isinstance(value, Mapping) or not _is_item(value):
        return value
    uri, data = _get_uri_or_text(where, value)
    return data if uri is None else file_text(where, uri, conn_id)


def is_likely_path(text: str) -> bool:
    """Whether a string can only be meant as a path, and is none of a prompt or a URI."""
    return bool(_PATH.fullmatch(text.strip())) and not _URI.fullmatch(text.strip())


def _parse_string(where: str, text: str, conn_id: str | None) -> str | UploadSource:
    if _URI.fullmatch(text.strip()):
        return file_data(where, text.strip(), conn_id)
    if is_likely_path(text):
        message = (
            f"{where} is a string that looks like a path. For a file write pathlib.Path({text!r}) or a URI such as "
            f"{'file://' + text if text.startswith('/') else 'file:///...'}; for a prompt that looks like this, {{'data': ...}}"
        )
        raise FlowInputError(message)
    return _normalize_text(where, text)


def _normalize_text(where: str, text: str) -> str:
    """Give a prompt as it is, and a data URI in the one form that is documented (vendor-api G-10, G-12)."""
    if not text.strip():
        message = f"{where} is blank; it must be {FORMS}"
        raise FlowInputError(message)
    if text.lstrip()[:5].lower() != "data:":
        return text
    try:
        return encode_content(where, data_uri.decode(text))
    except ValueError:  # a prompt that merely begins like a data URI
        return text


def _mask_signatures(*values: Any) -> None:
    """Let Airflow write no signature of a URL among these into a log; what is sent has it whole."""
    from airflow.providers.common.compat.sdk import mask_secret

    with suppress(ValueError, TypeError, RecursionError):  # which is told as a finding
        for secret in find_signatures(json.dumps(values, default=str, skipkeys=True)):
            mask_secret(secret)


def validate_json_value(where: str, value: Any) -> None:
    """Refuse what JSON cannot hold, before anything is sent.

    :raises FlowInputError: naming the argument.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{where} cannot be sent as JSON: {error}"
        raise FlowInputError(message) from error
