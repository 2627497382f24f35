"""Where files are: safe names, folders, paths, URIs, connection ids, and URLs of storage consoles.

`is_likely_path_or_uri` distinguishes a path or a URI from a prompt.

Nothing here reads or writes the content of a file.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.payload import data_uri
from airflow_provider_flows.core.redaction import redact_path, strip_signatures
from airflow_provider_flows.core.safe_text import to_plain_name, to_safe_name

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun

LOCAL_SCHEMES = frozenset({"", "file", "local"})
# stores without real folders; s3fs would even create the bucket of a new folder, also of a misspelt one
OBJECT_STORES = frozenset(
    {"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "adl", "az", "wasb", "wasbs", "oss"}
)
SCHEME_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "local": "file"}  # other names of the same store
HADOOP_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})  # their URIs are container@host/path
WEB_SCHEMES = frozenset({"http", "https"})
# what installs the file system of a scheme, with all that it needs
PACKAGES = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "apache-airflow-providers-amazon[s3fs]"),
    **dict.fromkeys(("gs", "gcs"), "apache-airflow-providers-google"),
    **dict.fromkeys(("abfs", "abfss", "adl"), "apache-airflow-providers-microsoft-azure"),
    **dict.fromkeys(("sftp", "ssh"), "apache-airflow-providers-sftp[sshfs]"),
}
MACHINE_CREDENTIALS = (
    "No connection is named, so the store got the credentials of this machine, if it has any. Set {argument} "
    "to the Airflow connection of the store"
)
_NO_FILE_SYSTEM = re.compile(r"No filesystem registered|Unsupported filesystem|Protocol not known")
# the end of an S3 client's host, and the domain of its console (the amazon provider's links/base_aws.py)
CONSOLE_DOMAINS = {".amazonaws.com": "aws.amazon.com", ".amazonaws.com.cn": "amazonaws.cn"}
CONSOLE_SCHEMES = frozenset({"s3", "gs", "http", "https"})  # of stores that may have a console

MAX_FILE_NAME_LENGTH = 100

FIELDS = ("name", "index", "asset_id", "flow", "flow_run_id")  # of OutputName
INPUT_FIELD = "input."
EXAMPLE_NAME = "{input.key}-{index}"
_FIELD = re.compile(r"\{([^{}]*)\}")
_INDEX_FIELD = re.compile(r"index(?::0?([1-9])d?)?")
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)

# The suffixes of files, without those that also end a sentence without a blank, such as `.in` and `.so`.
_SUFFIX = (
    r"\.(?:7z|avif|avro|bmp|cfg|conf|crt|csv|cur|dae|db|docx?|eps|env|exr|fbx|gif|glb|gltf|gz|hdr|heic|heif|html?"
    r"|ico|ini|jpe?g|json|jsonl|key|log|md|mov|mp3|mp4|mtl|npy|npz|obj|orc|p12|parquet|pdf|pem|pfx|pickle|pkl|ply"
    r"|png|pptx?|psd|py|sh|sql|sqlite3?|step|stl|stp|svg|tar|tga|tgz|tiff?|toml|tsv|txt|usda|usdc|usdz|wav|webm"
    r"|webp|xlsx?|xml|ya?ml|zip|zst)"
)
# what a path may begin with, before its first slash
_ANCHOR = r"(?:~[\w.-]*|\.{1,2}|\$[a-z_]\w*|\$\{\w+\}|%\w+%)"
_ONE_WORD = re.compile(
    r"\S*\w://\S*"  # a URI, also a chained one such as simplecache::s3://bucket/x
    r"|[a-z][a-z0-9+.-]*:[\\/]\S*"  # file:/x, C:/x, C:\x
    r"|(?:file|local):\S+"
    rf"|(?:{_ANCHOR}|\.[\w-]+)?[\\/]\S*"  # /x, \\host\x, ~/x, ./x, $HOME/x, .ssh/x
    r"|~|\.{1,2}|www\.\S+|\S*\w[\\/]"
    rf"|\S+{_SUFFIX}(?:[?#]\S*)?",
    re.IGNORECASE,
)
_SEVERAL_WORDS = re.compile(
    r"(?!https?:)[a-z][a-z0-9+.-]+://\S.*|(?:file|local):\S.*"  # words may follow a web address in a prompt
    rf"|{_ANCHOR}[\\/].*|[a-z]:(?:\\|/(?!/)).*|\\\\\S.*"
    rf"|/\S.*?(?:(?<!\d)/.*|{_SUFFIX})",  # an absolute path; 3/4 is not part of one, nor is /imagine
    re.IGNORECASE | re.DOTALL,
)
# the name of a file, or a relative or web address, with blanks in it
_NAME_WITH_BLANKS = re.compile(
    rf"(?!\S+\s.*://)(?!.*{_SUFFIX}\s)(?!.*[,;:!?]\s).*{_SUFFIX}", re.IGNORECASE | re.DOTALL
)
# a path or URI of any number of words: its beginning and its end are those of a path
_MANY_WORDS = re.compile(
    rf"(?:(?!https?:)[a-z][a-z0-9+.-]+:/|(?:{_ANCHOR}|[a-z]:|/\S+)[\\/]).*{_SUFFIX}", re.IGNORECASE
)
_PROSE_WORDS = frozenset({"a", "an", "the", "from", "into", "like", "see", "use", "as", "to", "with", "is"})
_MAX_PATH_WORDS = 8  # a text of more words is prose, but for _MANY_WORDS
_MAX_MATCHED_LENGTH = 4096  # characters, the longest path of Linux; of a longer text, the start is matched
_DATA_URI = re.compile(
    r"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[^;,]{0,1000}){0,10},\S|data:(?:[^,\s]{0,1000}[;,])?base64[,;]",
    re.IGNORECASE,
)
_AROUND = " \t\r\n\v\f\ufeff\u200b\"'`<>"  # may be around a path that was copied from somewhere


def is_likely_path_or_uri(text: str) -> bool:
    """Return whether a text is, or looks like, a path, the name of a file, or a URI (also a data URI).

    The test is about the complete text, with and without percent-encoding: a text in which a path or an
    address is one of several words is a prompt, except for a path or a name that has blanks itself.
    """
    stripped = text.strip(_AROUND)
    if _DATA_URI.match(stripped):
        return True
    start = stripped[:_MAX_MATCHED_LENGTH]
    return any(map(_is_path_or_uri, {start, unquote(start)}))


def _is_path_or_uri(text: str) -> bool:
    words = text.split()
    if len(words) > _MAX_PATH_WORDS:
        return _MANY_WORDS.fullmatch(text) is not None
    if len(words) == 1:
        return _ONE_WORD.fullmatch(text) is not None
    if _SEVERAL_WORDS.fullmatch(text):
        return True
    return _PROSE_WORDS.isdisjoint(text.lower().split()) and bool(_NAME_WITH_BLANKS.fullmatch(text))


@dataclass(frozen=True, slots=True)
class OutputName:
    """A pattern of file names without extension, such as `{input.key}-{index}`.

    :param pattern: a text with fields. Jinja templates in it are not rendered yet, and count as text.
    :param inputs: the inputs of the run, as the operator gets them, or None.
    :raises FlowInputError: the pattern is empty, names a folder, has an unknown field or a brace that is
        not part of one.
    """

    pattern: str
    inputs: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Validate the pattern."""
        if not isinstance(self.pattern, str) or not self.pattern.strip():
            raise FlowInputError(f"output_name must be a text such as {EXAMPLE_NAME!r}, not {self.pattern!r}")
        text = _JINJA.sub("", self.pattern)
        if "/" in _FIELD.sub("", text) or "\\" in text:
            raise FlowInputError(
                f"output_name {self.pattern!r} names a folder. Put the folder into output_path; below it, "
                "each run has a folder of its own"
            )
        if brace := next(iter(re.findall("[{}]", _FIELD.sub("", text))), None):
            state = "is not closed" if brace == "{" else "has no opening brace before it"
            raise FlowInputError(
                f"output_name {self.pattern!r} has a {brace!r} that {state}. Write a field as in "
                f"{EXAMPLE_NAME!r}; a file name has no braces"
            )
        for name in _FIELD.findall(text):
            if _INDEX_FIELD.fullmatch(name) is None and not _is_known_field(name):
                hint = f" If {name!r} is of the input, write {{input.{name}}}." if name.isidentifier() else ""
                raise FlowInputError(
                    f"output_name {self.pattern!r} has the unknown field {{{name}}}. Known are "
                    f"{', '.join(f'{{{known}}}' for known in (*FIELDS, 'index:03', 'input.KEY'))}.{hint}"
                )

    def format(self, output: FlowOutput, index: int, run: FlowRun) -> str:
        """Return the safe name of an output's file; that of the output itself if nothing of it is left."""
        values = {
            "name": output.name,
            "asset_id": output.asset_id,
            "flow": run.flow,
            "flow_run_id": run.flow_run_id,
        }

        def replace(match: re.Match[str]) -> str:
            name = match[1]
            if (index_match := _INDEX_FIELD.fullmatch(name)) is not None:
                return str(index).zfill(int(index_match[1] or 0))
            if name.startswith(INPUT_FIELD):
                return self._get_input_value(name.removeprefix(INPUT_FIELD), output.additional)
            return str(values.get(name) or "")

        text = _FIELD.sub(replace, self.pattern)
        if data_uri.sniff(b"", text) is not None:  # the extension is that of the file's type
            text = text.rpartition(".")[0]
        return to_plain_name(text, MAX_FILE_NAME_LENGTH) or safe_name(output.name)

    def find_missing_keys(self) -> list[str]:
        """Return the keys of `{input.KEY}` that no input has."""
        keys = [name.removeprefix(INPUT_FIELD) for name in _FIELD.findall(self.pattern) if "." in name]
        return [key for key in keys if not self._get_input_value(key, None)]

    def _get_input_value(self, key: str, metadata: Any) -> str:
        """Return a value of an output's metadata, which the service copies from its input, or of an input."""
        for values in (metadata, *_iter_input_values(self.inputs)):
            value = values.get(key) if isinstance(values, Mapping) else None
            if isinstance(value, str | int | float) and str(value).strip():
                return str(value)
        return ""


def _is_known_field(name: str) -> bool:
    return name in FIELDS or (name.startswith(INPUT_FIELD) and name != INPUT_FIELD)


def _iter_input_values(inputs: Any) -> Iterator[Any]:
    """Yield the metadata of each input, or the variables."""
    if isinstance(inputs, Mapping):
        yield inputs.get("additional")
        yield inputs
        inputs = inputs.get("outputs")
    for item in inputs if isinstance(inputs, list | tuple) else ():
        yield from _iter_input_values(item) if isinstance(item, list | tuple) else [_get_metadata(item)]


def _get_metadata(item: Any) -> Any:
    return item.get("additional") if isinstance(item, Mapping) else None


def file_names(
    outputs: Iterable[FlowOutput], naming: OutputName | None = None, run: FlowRun | None = None
) -> Iterator[str]:
    """Yield a safe and unique file name without extension for each output.

    :param naming: the pattern of the names; by default a file has its output's name.
    :param run: the run of the outputs, for the pattern.
    """
    used_names: set[str] = set()
    next_numbers: dict[str, int] = {}  # by name, so that no number is tried twice
    for index, output in enumerate(outputs):
        safe = safe_name(output.name) if naming is None or run is None else naming.format(output, index, run)
        number = next_numbers.get(safe.lower(), 1)
        name = safe if number == 1 else f"{safe}-{number}"
        while name.lower() in used_names:
            number += 1
            name = f"{safe}-{number}"
        used_names.add(name.lower())
        next_numbers[safe.lower()] = number + 1
        yield name


def safe_name(name: str) -> str:
    """Return a name that is one path segment on every store, different for each name (`to_safe_name`)."""
    return to_safe_name(name, MAX_FILE_NAME_LENGTH)


def get_run_folder(run: FlowRun, output_path: str, output_conn_id: str | None) -> ObjectStoragePath:
    """Return the folder of a run's files, `output_path/<flow_run_id>`, where the id is a safe name.

    No other id has this folder, also on a store that ignores case.
    """
    return to_object_path(output_path, output_conn_id) / to_safe_name(
        run.flow_run_id, MAX_FILE_NAME_LENGTH, ignore_case=True
    )


def get_file_path(uri: str, output_path: str, output_conn_id: str | None) -> ObjectStoragePath:
    """Return the path of a stored output, with the connection of the task's `output_path`."""
    return to_object_path(uri, get_conn_id(to_object_path(output_path, output_conn_id)))


def resolve_path(where: str, path_or_uri: Any, conn_id: str | None) -> Path | ObjectStoragePath:
    """Return the path of an input's file.

    :param where: the argument that names the file, for messages.
    :param path_or_uri: a pathlib.Path, an ObjectStoragePath or a URI.
    :param conn_id: the Airflow connection of the file's store, unless the path names one or is local.
    :raises FlowInputError: the URI is ambiguous, or names an unknown connection.
    :raises Exception: the URI is invalid, or no file system is installed for it.
    """
    is_local_path = isinstance(path_or_uri, PurePath) and not hasattr(path_or_uri, "protocol")
    if is_local_path:  # not an ObjectStoragePath, which parses some valid file names as URIs
        return Path(path_or_uri)
    from airflow.sdk import ObjectStoragePath  # slow to import

    def with_connection(path: ObjectStoragePath) -> ObjectStoragePath:
        path_conn_id = get_conn_id(path)
        if path_conn_id is not None and path_conn_id != conn_id:
            subject = f"{where} names a file that cannot be read ({redact_path(path)})"
            require_connection(f"{subject}: the connection in its URI", path_conn_id)
        if conn_id and path_conn_id is None and path.protocol not in LOCAL_SCHEMES:
            return to_object_path(str(path), conn_id)
        return path

    if isinstance(path_or_uri, ObjectStoragePath):
        return with_connection(path_or_uri)
    path = with_connection(to_object_path(str(path_or_uri)))
    decoded_uri = _decode_percent(str(path_or_uri))
    if decoded_uri is None:
        return path
    return _choose_path(where, path, with_connection(to_object_path(decoded_uri)))


def _decode_percent(uri: str) -> str | None:
    """Return a URI with its escapes (`%20`) decoded; None if it has none."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not re.search("%[0-9A-Fa-f]{2}", rest):
        return None
    return f"{scheme}://{os.fsdecode(unquote_to_bytes(os.fsencode(rest)))}"


def _choose_path(where: str, path: ObjectStoragePath, decoded_path: ObjectStoragePath) -> ObjectStoragePath:
    """Return the literal path if that exists, else the percent-decoded one if that exists.

    The URIs of this provider's outputs, and those of object stores, are literal; those of
    `pathlib.Path.as_uri` are percent-encoded.

    :raises FlowInputError: both are local files, so that the URI is ambiguous.
    """
    try:
        exists = path.exists()
        if exists and path.protocol not in LOCAL_SCHEMES:  # a second request would be wasted
            return path
        decoded_exists = decoded_path.exists()
    except Exception:  # noqa: BLE001  # any error of the store's library; reading the file reports it
        return path
    if exists and decoded_exists:
        raise FlowInputError(
            f"{where} is ambiguous: both {redact_path(path)} and {redact_path(decoded_path)} exist. Pass the "
            "file as a pathlib.Path"
        )
    return decoded_path if decoded_exists else path


def require_connection(where: str, conn_id: Any) -> None:
    """Check that an Airflow connection exists.

    A file system would ignore an unknown one: that of local files has no connection, and that of S3 uses
    whatever credentials it finds on the machine.

    :param where: what names the connection, for the message.
    :raises FlowInputError: there is no such connection, or the secrets backend cannot be reached; only the
        former is permanent.
    """
    from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

    if not isinstance(conn_id, str) or not conn_id.strip():
        raise FlowInputError(f"{where} must be the id of an Airflow connection, or None, not {conn_id!r}")
    shown = repr(conn_id) if ":" not in conn_id else "not an id"  # but perhaps a user name and a password
    try:
        BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise FlowInputError(
            f"{where} is {shown}, and there is no such Airflow connection. Create it, or correct the id"
        ) from None
    except Exception as error:  # noqa: BLE001  # any error of a secrets backend
        raise FlowInputError(
            f"{where} is {shown}, and that Airflow connection cannot be read ({type(error).__name__})",
            is_permanent=False,
        ) from None


def explain_store_error(path_or_uri: object, error: Exception) -> str:
    """Return the text of an error of a store, or how to install the file system that is missing.

    The text may contain credentials.
    """
    from airflow.sdk.io import has_fs

    scheme = str(path_or_uri).partition("://")[0].lower()
    cause = error.__cause__ if isinstance(error, OSError) and error.__cause__ is not None else error
    is_missing = isinstance(cause, ImportError) or (
        isinstance(cause, ValueError)
        and (_NO_FILE_SYSTEM.search(str(cause)) is not None or (scheme in PACKAGES and not has_fs(scheme)))
    )
    if not is_missing:
        return str(error) or type(error).__name__
    package = PACKAGES.get(scheme)
    if package is not None:
        return f"no file system is installed for {scheme}://. Install {package} on each worker"
    known = ", ".join(f"{known}://" for known in ("file", "s3", "gs", "abfs", "sftp"))
    return f"Airflow knows no file system for {scheme}://, but for example for {known}"


def uses_machine_credentials(path_or_uri: object) -> bool:
    """Return whether a path is in a store that needs credentials, and names no Airflow connection."""
    scheme, _, rest = str(path_or_uri).partition("://")
    return scheme.lower() in PACKAGES and "@" not in rest.partition("/")[0]


def to_object_path(location: str, conn_id: str | None = None) -> ObjectStoragePath:
    """Return a path or a URI as Airflow's path, the same on every version of Airflow.

    On Airflow 3.1 a `conn_id`, even None, would replace the connection in the URI, and a relative path would
    be below the root folder.

    :param conn_id: the Airflow connection of the store, unless the URI names one.
    """
    from airflow.sdk import ObjectStoragePath  # slow to import

    if not location.startswith("/") and not urlsplit(location).scheme:
        location = str(Path(location).expanduser().absolute())
    path = ObjectStoragePath(location)
    if conn_id is None or get_conn_id(path) is not None:
        return path
    return ObjectStoragePath(location, conn_id=conn_id)


def get_conn_id(path: ObjectStoragePath) -> str | None:
    """Return the id of the Airflow connection of a path, for which Airflow 3.1 has no attribute."""
    conn_id: str | None = path.serialize()["conn_id"]
    return conn_id


def to_uri(path: ObjectStoragePath) -> str:
    """Return a path as a URI, always with a scheme and never with the id of an Airflow connection."""
    scheme, separator, rest = str(path).partition("://")
    if not separator:
        return f"file://{path.absolute()}"
    return f"{scheme}://{rest.removeprefix(f'{get_conn_id(path)}@')}"


@dataclass(frozen=True, slots=True)
class StorageLocation:
    """The three parts of a file's URI, without credentials, signature and the id of an Airflow connection.

    :param scheme: in lower case, aliases such as `s3a` replaced.
    :param authority: a bucket, a host, or a container with its host; empty for files of this machine.
    :param path: without a leading slash.
    """

    scheme: str
    authority: str
    path: str

    @classmethod
    def parse(cls, uri: str) -> Self | None:
        """Parse a URI. Return None if the text is not one."""
        scheme, separator, rest = strip_signatures(uri.strip()).partition("://")
        if not separator or not scheme:
            return None
        scheme = SCHEME_ALIASES.get(scheme.lower(), scheme.lower())
        if scheme in {"http", "https"}:
            rest = rest.partition("#")[0].partition("?")[0]
        authority, _, path = rest.partition("/")
        user, _, host = authority.rpartition("@")
        container = user if scheme in HADOOP_SCHEMES and "." in host else ""
        return cls(scheme, f"{container}@{host}" if container else host, path.lstrip("/"))

    @property
    def namespace(self) -> str:
        """The store's name in OpenLineage (https://openlineage.io/docs/spec/naming)."""
        if self.scheme == "file" and not self.authority:
            return self.scheme
        return f"{self.scheme}://{self.authority}"

    @property
    def name(self) -> str:
        """The file's name in OpenLineage: the absolute path in a file system, the key in an object store."""
        return f"/{self.path}" if self.scheme == "file" or not self.path else self.path


def may_have_console(uris: Iterable[str]) -> bool:
    """Return whether `console_url` may find a console, which depends on the store's endpoint, too."""
    locations = map(StorageLocation.parse, uris)
    return any(location is not None and location.scheme in CONSOLE_SCHEMES for location in locations)


def console_url(uris: Sequence[str], endpoint: str | None = None) -> str | None:
    """Return the URL of a storage console for one file, or for the common folder of several.

    Return None if the store has no such console, or if the files are in different stores.
    Azure's portal needs ids of a subscription and an account, which no URI contains.

    :param endpoint: the endpoint URL of the S3 client, None for Amazon's. Other endpoints have no known
        console.
    """
    locations = [location for location in map(StorageLocation.parse, uris) if location is not None]
    if not locations or len({(location.scheme, location.authority) for location in locations}) != 1:
        return None
    first, is_single = locations[0], len(locations) == 1
    folders = [posixpath.dirname(f"/{location.path}") for location in locations]
    path = quote(first.path if is_single else posixpath.commonpath(folders).strip("/"), safe="/")
    if first.scheme == "s3":
        domain = _console_domain(endpoint)
        page = (
            f"object/{first.authority}?prefix={path}"
            if is_single
            else f"buckets/{first.authority}?prefix={path}/"
        )
        return None if domain is None else f"https://console.{domain}/s3/{page}"
    if first.scheme == "gs":
        page = "_details/" if is_single else ""
        return f"https://console.cloud.google.com/storage/browser/{page}{first.authority}/{path}"
    if first.scheme in {"http", "https"} and is_single:
        return f"{first.scheme}://{first.authority}/{quote(first.path, safe='/%')}"
    return None


def _console_domain(endpoint: str | None) -> str | None:
    """Return the domain of the console of an S3 endpoint, None if the endpoint is not Amazon's."""
    location = StorageLocation.parse(endpoint or "https://s3.amazonaws.com")
    host = "" if location is None else location.authority.partition(":")[0].lower()
    if host.endswith(".amazonaws.com") and ".us-gov-" in host:
        return "amazonaws-us-gov.com"
    return next((domain for suffix, domain in CONSOLE_DOMAINS.items() if host.endswith(suffix)), None)
