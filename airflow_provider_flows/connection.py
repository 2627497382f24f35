"""The table of the fields in a connection's extra, and the conversion of a connection to `Settings`.

The same table defines the form in Airflow's UI, the validation and the documentation.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_flows.core.exceptions import FlowInputError

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_flows.transport.settings import Settings

HOSTS_FORMATS = {
    "hosts": (
        "names of public hosts, separated by commas, such as 'pictures.example.com, *.example.org' (without "
        "scheme, port and path; *. is allowed at the start only)"
    ),
    "input_hosts": (
        "names or addresses of hosts, perhaps with a port, separated by commas, such as 'files.corp:8080, "
        "10.0.0.7, *.lan' (without scheme and path; *. is allowed at the start only)"
    ),
}
UNKNOWN_FIELDS = "The extra of {} has fields without effect: {}"
SCHEMA_ADVICE = "In a connection's URI, the schema is the path. The host may contain scheme, port and path."
_PATH_SEGMENT = re.compile(r"(?!\.{1,2}$)[\w.~-]+", re.ASCII)
# environment variables that name a CA bundle; `requests` reads the first two, OpenSSL the third


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a connection's extra.

    :param label: the field's name in the form.
    :param description: the field's help text in the form.
    :param kind: its JSON schema type: number, integer, boolean or string; or one of `HOSTS_FORMATS`, which is
        a string in the form, and a tuple of host names and patterns as a value.
    :param default: the value of an empty field.
    :param minimum: the minimum of a number.
    """

    label: str
    description: str
    kind: str
    default: Any = None
    minimum: float | None = None

    def to_form(self) -> dict[str, Any]:
        """Return the field in the form of Airflow's provider info (`conn-fields`)."""
        schema: dict[str, Any] = {"type": ["string" if self.kind in HOSTS_FORMATS else self.kind, "null"]}
        if self.default is not None:
            schema["default"] = self.default
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        return {"label": self.label, "description": self.description, "schema": schema}


def fields(read_timeout: float) -> dict[str, Field]:
    """Return the table of the fields that the connection of every service has.

    :param read_timeout: the default of the service, in seconds.
    """
    return {
        "connect_timeout": Field(
            "Connect timeout", "Timeout for establishing a connection, in seconds.", "number", 10, 0.1
        ),
        "read_timeout": Field(
            "Read timeout",
            "Longest time without data from the service, in seconds. A complete response, unless it is a "
            "file, has the connect timeout and this time together.",
            "number",
            read_timeout,
            0.1,
        ),
        "retries": Field(
            "Retries",
            "How often a request is sent again after a transient error, if repeating it is safe.",
            "integer",
            3,
            0,
        ),
        "verify": Field("Verify TLS", "Whether to verify TLS certificates.", "boolean", default=True),
        "ca_bundle": Field(
            "CA bundle",
            "Path of a file with the CA certificates to trust instead of the default ones.",
            "string",
        ),
        "max_requests_per_second": Field(
            "Maximum requests per second",
            "Rate limit for the requests of each process; empty for no limit but the pages' own.",
            "number",
            None,
            0.01,
        ),
        "max_active_runs": Field(
            "Maximum active flow runs",
            "How many flow runs of the account may be active, by any client; further ones wait.",
            "integer",
            None,
            1,
        ),
        "max_runs_per_day": Field(
            "Maximum flow runs per day",
            "How many flow runs the account may start within any 24 hours; beyond that, tasks fail.",
            "integer",
            None,
            1,
        ),
        "max_response_mib": Field(
            "Maximum response size",
            "Maximum size of a response that is not a file, in MiB.",
            "number",
            64,
            0.001,
        ),
        "max_output_mib": Field(
            "Maximum file size",
            "Maximum size of a file that is downloaded, in MiB.",
            "number",
            4096,
            0.001,
        ),
        "picture_hosts": Field(
            "Picture hosts",
            "Other public hosts from which pictures and files may be fetched, separated by commas, such as "
            "pictures.example.com or *.example.com; the service's own are known.",
            "hosts",
        ),
        "input_hosts": Field(
            "Input hosts",
            "Hosts of your network from which files of inputs may be fetched, also by plain http, separated "
            "by commas, such as files.corp:8080 or *.corp; public hosts need not be named for https.",
            "input_hosts",
        ),
    }


GENERIO_FIELDS = fields(read_timeout=60)
PROMPTCHAINER_FIELDS = {
    **fields(read_timeout=300),  # one request takes as long as the flow run
    "test_flow": Field(
        "Test flow",
        "Id of one of your flows; the Test button reads its definition to check the API key.",
        "string",
    ),
    "graphs": Field(
        "Flow graphs", "Folder (path or URI) with exported flow graphs, named <flow id>.json.", "string"
    ),
}


def connection_type(
    name: str,
    *,
    hook_name: str,
    hook_class: str,
    default_host: str,
    table: Mapping[str, Field],
    key: str = "API key",
) -> dict[str, Any]:
    """Return a service's entry in `connection-types` of the provider info: its connection type and form.

    :param name: the connection type, as in `conn_type` of the hook.
    :param hook_name: the name in the list of connection types, as in `hook_name` of the hook.
    :param hook_class: the full name of the hook's class, which is not imported here.
    :param default_host: the service's address, as in `default_host` of the hook.
    :param table: the hook's `fields`.
    :param key: the service's name for the content of the password field.
    """
    return {
        "connection-type": name,
        "hook-name": hook_name,
        "hook-class-name": hook_class,
        "ui-field-behaviour": {
            "hidden-fields": ["login", "schema", "port"],
            "relabeling": {"password": key, "host": "Host"},
            "placeholders": {"host": default_host, "password": f"{key} of your account"},
        },
        "conn-fields": {field: entry.to_form() for field, entry in table.items()},
    }


@contextmanager
def explain_missing_connection(conn_id: Any) -> Iterator[None]:
    """Raise a FlowInputError, which is not retried, if Airflow has no such connection.

    :raises FlowInputError: it has none, or this is not the id of a connection.
    """
    from airflow.providers.common.compat.sdk import AirflowNotFoundException  # see `to_settings`

    if not isinstance(conn_id, str) or not conn_id.strip():
        from airflow_provider_flows.core.template_problems import describe_misplaced_task

        problem = describe_misplaced_task("flows_conn_id", conn_id)
        actual = repr(conn_id) if conn_id is None or isinstance(conn_id, str) else type(conn_id).__name__
        message = f"flows_conn_id {problem or f'must be the id of a connection, not {actual}'}"
        raise FlowInputError(message)
    try:
        yield
    except AirflowNotFoundException:
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        advice = (
            "does not exist, or Airflow cannot read it. Create or correct it in Airflow (Admin > "
            "Connections), in the environment or in a secrets backend, or set flows_conn_id to another one."
        )
        if os.environ.get(variable):
            advice = (
                f"is in the environment variable {variable}, but Airflow cannot read it: the value must "
                "be the connection as a JSON object or as a URI."
            )
        message = f"Connection {conn_id!r} {advice}"
        raise FlowInputError(message) from None


def describe_wrong_type(connection: Connection, conn_type: str | None) -> str:
    """Return the message about a connection of the wrong type, whose key is sent nowhere.

    :param conn_type: the right type; None if the connection's own type is that of no service.
    """
    if not connection.conn_type:
        variable = f"AIRFLOW_CONN_{str(connection.conn_id).upper()}"
        where = f"the environment variable {variable}" if os.environ.get(variable) else "Airflow"
        forms = 'generio://:TOKEN@ as a URI, {"conn_type": "generio", "password": "TOKEN"} as JSON'
        return f"Connection {connection.conn_id!r} has no type. Correct it in {where}: {forms}."
    actual = f"Connection {connection.conn_id!r} has type {connection.conn_type!r}"
    if conn_type is None:
        return (
            f"{actual}, which is not a flow service. Set flows_conn_id to a connection of type generio or "
            'promptchainer, or of a flow service that another provider adds (see "airflow providers list").'
        )
    return (
        f"{actual}, not {conn_type!r}, so its key is not sent there. Set flows_conn_id to a connection of "
        f"type {conn_type!r}, or get the hook of the connection's type from FlowsHook.get_hook."
    )


def parse_extra(connection: Connection, table: Mapping[str, Field]) -> dict[str, Any]:
    """Return the validated fields of a connection's extra; an absent, null or blank field has its default.

    :raises FlowInputError: the extra is not a JSON object, or a field has the wrong type; the message names
        it.
    """
    raw_value = _load_extra(connection)
    return {
        name: _parse_field(connection.conn_id, name, field, raw_value.get(name))
        for name, field in table.items()
    }


def _load_extra(connection: Connection) -> dict[str, Any]:
    # `extra_dejson` masks secrets, which blocks the triggerer's event loop, and none of these fields is a
    # secret
    try:
        raw_value = json.loads(connection.extra or "{}")
    except ValueError:
        raw_value = None
    if not isinstance(raw_value, dict):
        message = (
            f"The extra of connection {connection.conn_id!r} must be a JSON object such as "
            '{"read_timeout": 60}'
        )
        raise FlowInputError(message)
    return raw_value


def find_unknown_fields(connection: Connection, table: Mapping[str, Field]) -> list[str]:
    """Return the names in a connection's extra that are not in the table, with the closest ones that are."""
    unknown = [name for name in _load_extra(connection) if name not in table and not name.startswith("__")]
    if not unknown:
        return unknown
    from airflow_provider_flows.core.validation import shorten, suggest_names  # imports stay cheap

    return [f"{shorten(name)}{suggest_names(name, table)}" for name in unknown]


def _parse_field(conn_id: str, name: str, field: Field, raw_value: Any) -> Any:
    """Return the value of one field; text is converted, because an extra from a URI is all text."""
    if raw_value is None or raw_value == "":
        return field.default
    try:
        value = _PARSERS[field.kind](raw_value)
    except (ValueError, TypeError, KeyError):
        value = None
    if value is None or (field.minimum is not None and not field.minimum <= value < float("inf")):
        bound = "" if field.minimum is None else f" of at least {field.minimum}"
        what = HOSTS_FORMATS.get(field.kind) or f"of type {field.kind}{bound}"
        message = f"{name} in the extra of connection {conn_id!r} must be {what}, not {raw_value!r}"
        raise FlowInputError(message)
    return value


def _parse_boolean_field(raw_value: Any) -> bool:
    if isinstance(raw_value, bool):
        return raw_value
    return {"true": True, "1": True, "false": False, "0": False}[str(raw_value).lower()]


def _parse_number_field(raw_value: Any) -> float:
    return float("nan") if isinstance(raw_value, bool) else float(raw_value)


def _parse_integer_field(raw_value: Any) -> int:
    number = _parse_number_field(raw_value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _parse_string_field(raw_value: Any) -> str:
    if not isinstance(raw_value, str):
        raise TypeError
    return raw_value.strip()


def _parse_hosts_field(raw_value: Any) -> tuple[str, ...]:
    from airflow_provider_flows.transport.url_guard import parse_host_pattern  # see `to_settings`

    return _parse_list_field(raw_value, parse_host_pattern)


def _parse_input_hosts_field(raw_value: Any) -> tuple[str, ...]:
    from airflow_provider_flows.transport.url_guard import parse_input_host  # see `to_settings`

    return _parse_list_field(raw_value, parse_input_host)


def _parse_list_field(raw_value: Any, parse: Callable[[str], str]) -> tuple[str, ...]:
    texts = raw_value.split(",") if isinstance(raw_value, str) else raw_value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError
    return tuple(parse(text) for text in texts if text.strip())


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "number": _parse_number_field,
    "integer": _parse_integer_field,
    "boolean": _parse_boolean_field,
    "string": _parse_string_field,
    "hosts": _parse_hosts_field,
    "input_hosts": _parse_input_hosts_field,
}


def parse_base_url(connection: Connection, default: str) -> str:
    """Return the base URL of the service: from the connection's host and schema, else the service's own.

    The host may contain a scheme, a port and a path. Without a scheme it is https. The schema, which is the
    path in a connection's URI, may contain the scheme or the path instead.

    :raises FlowInputError: the host is invalid, or its scheme is neither http nor https; or the schema is
        neither a scheme nor a path, or contradicts the host.
    """
    host = (connection.host or "").strip() or default
    scheme, path = _parse_schema(connection)
    url = host if "://" in host else f"{scheme or 'https'}://{host}"
    try:
        parts = urlsplit(url)
        is_valid = (
            parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        is_valid = False
    if not is_valid or parts.query or parts.fragment or "@" in parts.netloc:
        message = (
            f"The host of connection {connection.conn_id!r} must be a host name, "
            f"or an http(s) URL such as {default}{_describe_host_problem(url)}"
        )
        raise FlowInputError(message)
    host_path = parts.path.rstrip("/")
    if (scheme and scheme != parts.scheme) or (path and host_path):
        cause = f"has the scheme {parts.scheme}" if scheme else "has a path, too"
        message = (
            f"The schema of connection {connection.conn_id!r} is {connection.schema!r}, but its host "
            f"{cause}; leave one of them out. {SCHEMA_ADVICE}"
        )
        raise FlowInputError(message)
    port = f":{connection.port}" if connection.port and not parts.port else ""
    return f"{parts.scheme}://{parts.netloc}{port}{host_path}{path}"


def _describe_host_problem(url: str) -> str:
    """Return the end of a message about an invalid host: which part is wrong, as far as that is no secret."""
    scheme, _, rest = url.partition("://")
    name, _, port = rest.partition("/")[0].rpartition("@")[2].rpartition(":")
    if scheme.isalnum() and scheme.lower() not in {"http", "https"}:
        return f"; its scheme is {scheme!r}"
    if port.isdecimal() and not 0 < int(port) < 65_536:
        return f"; its port is {port}, which is not in 1 to 65535"
    if ":" in name and not name.startswith("["):
        return "; an IPv6 address must be in brackets, as in http://[::1]:8084"
    if name and port and not port.isdecimal():
        return (
            f"; its port {repr(port) if len(port) < 6 else ''} is not a number"  # a long one may be a token
        )
    return ""


def _parse_schema(connection: Connection) -> tuple[str, str]:
    """Return the scheme and the path that a connection's schema contains; one of them is empty, or both."""
    schema = (connection.schema or "").strip().strip("/")
    if schema.lower() in {"http", "https"}:
        return schema.lower(), ""
    if not schema:
        return "", ""
    if not all(_PATH_SEGMENT.fullmatch(segment) for segment in schema.split("/")):
        message = (
            f"The schema of connection {connection.conn_id!r} must be http, https, or the path of the "
            f"service, such as 'gateway/flows'. {SCHEMA_ADVICE}"
        )
        raise FlowInputError(message)
    return "", f"/{schema}"


def get_token(connection: Connection) -> str:
    """Return the API key in the connection's password.

    :raises FlowInputError: there is none, or it contains characters that no key has. The message omits the
        password.
    """
    token = (connection.password or "").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        unused = " (its login is not used)" if connection.login else ""
        state = (
            f"no password{unused}"
            if not token
            else "a password with blanks or with characters that no key has"
        )
        message = f"Connection {connection.conn_id!r} has {state}; put the API key into its password field"
        raise FlowInputError(message)
    return token


def to_settings(
    connection: Connection,
    extra: Mapping[str, Any],
    *,
    default_host: str,
    credentials: Callable[[str], Mapping[str, str]],
    picture_hosts: Sequence[str] = (),
) -> Settings:
    """Return a connection's settings for the transports.

    :param extra: the fields that `parse_extra` has returned.
    :param default_host: the service's own address.
    :param credentials: returns the headers for an API key.
    :param picture_hosts: the service's other hosts, to which those of the extra are added.
    :raises FlowInputError: the connection's host, password or CA bundle is invalid.
    """
    # every process of Airflow imports this module for the table of fields, without the transports
    from airflow_provider_flows.transport.settings import Settings, find_ca_bundle

    return Settings(
        base_url=parse_base_url(connection, default_host),
        credentials=credentials(get_token(connection)),
        connect_timeout=extra["connect_timeout"],
        read_timeout=extra["read_timeout"],
        verify=find_ca_bundle(connection.conn_id, extra["ca_bundle"]) if extra["verify"] else False,
        max_response_bytes=int(extra["max_response_mib"] * 1024 * 1024),
        max_output_bytes=int(extra["max_output_mib"] * 1024 * 1024),
        picture_hosts=(*picture_hosts, *(extra["picture_hosts"] or ())),
        input_hosts=extra.get("input_hosts") or (),
    )
