"""From what a DAG author writes as `inputs` to what is sent: which string is a prompt and which names a file, and reading files.

It sends nothing and does not decide what a service takes (flow/services do).
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.flow import data_uri
from airflow_provider_flows.flow.data_uri import Content
from airflow_provider_flows.flow.errors import FlowInputError
from airflow_provider_flows.flow.run import FlowInput

if TYPE_CHECKING:
    from airflow_provider_flows.flow.services import Inputs

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")  # one word with a scheme, and nothing else
# one word that only a path looks like, or the name of a file of a kind that flows take
_PATH = re.compile(r"(?:~|\.{1,2})?/\S*|[A-Za-z]:[\\/]\S*|\S+\.(?:png|jpe?g|tiff?|webp|bmp|gif|glb|gltf)", re.IGNORECASE)
FORMS = "a prompt, the URI of a file (file:///..., s3://...), a pathlib.Path, or a dict with 'data' or 'uri'"


def read_inputs(inputs: Any) -> Inputs:
    """Read the `inputs` of an operator or hook; files are opened here, and nothing was sent when this raises.

    * a string that is one URI (`scheme://...` without white space) names a file, read through ObjectStoragePath;
      any other string is a prompt, sent as it is; one that can only be meant as a path is refused;
    * a `pathlib.Path` or ObjectStoragePath names a file;
    * a dict with `data` (a prompt, or a data URI) or `uri` (a file), and perhaps `additional`, is one input with metadata;
      so an output of another flow run, which has a `uri`, can be given as it is;
    * any other mapping holds variables (PromptChainer).

    :raises FlowInputError: naming the item, what was wrong with it, and what would do.
    """
    if isinstance(inputs, Mapping) and not _is_item(inputs):
        return {str(name): value for name, value in inputs.items()}
    if inputs is None:
        return []
    several = isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes))
    return [_item(f"inputs[{index}]", item) for index, item in enumerate(inputs if several else [inputs])]


def _is_item(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is one input; variables that happen to be called `data` or `uri` are told apart by their company."""
    return bool(value.keys() & {"data", "uri"}) and value.keys() <= _KNOWN


# the keys of an input, and those of an output, which may be given as an input
_KNOWN = frozenset({"data", "uri", "additional", "name", "asset_id", "status", "media_type", "size", "sha256"})


def _item(where: str, item: Any) -> FlowInput:
    if isinstance(item, str):
        return FlowInput(_text(where, item))
    if isinstance(item, os.PathLike) or callable(getattr(item, "open", None)):  # an ObjectStoragePath is no os.PathLike
        return FlowInput(_file(where, item))
    if isinstance(item, Mapping) and _is_item(item):
        uri, data = item.get("uri"), item.get("data")
        if (uri is None) == (data is None):
            message = f"{where} must have either 'data' or 'uri', not both"
            raise FlowInputError(message)
        if not isinstance(data if uri is None else uri, str):
            key, value = ("data", data) if uri is None else ("uri", uri)
            message = f"{where}[{key!r}] must be text, not {type(value).__name__}"
            raise FlowInputError(message)
        sendable(f"{where}['additional']", item.get("additional"))
        return FlowInput(_file(where, uri) if uri is not None else _data(where, str(data)), item.get("additional"))
    named = f"a dict with {sorted(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
    message = f"{where} must be {FORMS}, not {named}"
    raise FlowInputError(message)


def _text(where: str, text: str) -> str:
    if _URI.fullmatch(text.strip()):
        return _file(where, text.strip())
    if _PATH.fullmatch(text.strip()):
        message = (
            f"{where} is a string that looks like a path. For a file write pathlib.Path({text!r}) or a URI such as "
            f"{'file://' + text if text.startswith('/') else 'file:///...'}; for a prompt that looks like this, {{'data': ...}}"
        )
        raise FlowInputError(message)
    return _data(where, text)


def _data(where: str, text: str) -> str:
    """Give a prompt as it is, and a data URI in the one form that is documented (vendor-api G-10, G-12)."""
    if not text.strip():
        message = f"{where} is blank; it must be {FORMS}"
        raise FlowInputError(message)
    if text.lstrip()[:5].lower() != "data:":
        return text
    try:
        return _sent(where, data_uri.decode(text))
    except ValueError:  # a prompt that merely begins like a data URI
        return text


def _sent(where: str, content: Content) -> str:
    """Give a file as it is sent: a text is a prompt (G-15), a BMP becomes a PNG (G-11), the rest is a data URI."""
    if content.media_type == "text/plain":
        return content.data.decode()
    return data_uri.encode(_as_png(where, content) if content.media_type == "image/bmp" else content)


def sendable(where: str, value: Any) -> None:
    """Refuse what JSON cannot hold, before anything is sent.

    :raises FlowInputError: naming the argument.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{where} cannot be sent as JSON: {error}"
        raise FlowInputError(message) from error


def _file(where: str, named: Any) -> str:
    """Read a file into a data URI whose media type is told by its content first, then by its name."""
    from airflow.sdk import ObjectStoragePath  # heavy, and only needed where there is a file

    name = named.as_posix() if isinstance(named, PurePath) else str(named)
    try:
        path = ObjectStoragePath(name)
        with path.open("rb") as file:
            data = file.read()
    except (OSError, ValueError, ImportError) as error:
        message = f"{where} names a file that cannot be read ({name}): {error}"
        raise FlowInputError(message) from error
    if not data:
        message = f"{where} names an empty file ({name})"
        raise FlowInputError(message)
    media_type = data_uri.sniff(data, path.name)
    if media_type is None:
        message = f"{where}: neither its content nor its name tells what {name} is; give it a usual name such as chair.png"
        raise FlowInputError(message)
    try:
        return _sent(where, Content(data, media_type))
    except UnicodeDecodeError as error:
        message = f"{where} names a text file that is not UTF-8 ({name}): {error}"
        raise FlowInputError(message) from error


def _as_png(where: str, bitmap: Content) -> Content:
    """Convert a BMP, which the newest documentation takes no more (vendor-api G-11), with Pillow if it is installed."""
    try:
        from PIL import Image
    except ImportError:
        message = (
            f"{where} is a BMP image, which the service does not take. Save it as PNG, or install "
            "airflow-provider-flows[images], which converts it"
        )
        raise FlowInputError(message) from None
    png = io.BytesIO()
    try:
        Image.open(io.BytesIO(bitmap.data)).save(png, "PNG")
    except OSError as error:
        message = f"{where} is a BMP image that cannot be read: {error}"
        raise FlowInputError(message) from error
    return Content(png.getvalue(), "image/png")
