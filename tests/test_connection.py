"""Tests of how an Airflow connection is parsed: hosts, every spelling of a connection, its extra, and errors.

The connections are Airflow's own, from environment variables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_flows.connection import (
    GENERIO_FIELDS,
    PROMPTCHAINER_FIELDS,
    get_token,
    parse_base_url,
    parse_extra,
)
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.provider_info import get_provider_info
from airflow_provider_flows.transport.settings import CA_BUNDLE_VARIABLES

DEFAULT = "https://flows.generio.ai"


@pytest.fixture(autouse=True)
def _no_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the CA bundles of the machine."""
    for name in CA_BUNDLE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def connection(**fields: Any) -> Connection:
    """Create an Airflow connection."""
    return Connection(conn_id="c", conn_type="generio", **({"password": "key"} | fields))


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        (None, None, DEFAULT),
        ("", None, DEFAULT),
        ("  ", None, DEFAULT),
        ("flows.example", None, "https://flows.example"),
        ("flows.example/", None, "https://flows.example"),
        ("flows.example", 8443, "https://flows.example:8443"),
        ("flows.example:8443", None, "https://flows.example:8443"),
        ("http://127.0.0.1:8084", None, "http://127.0.0.1:8084"),
        ("http://127.0.0.1:8084/", 1, "http://127.0.0.1:8084"),
        ("http://127.0.0.1", 8084, "http://127.0.0.1:8084"),
        ("HTTPS://Flows.Example", None, "https://Flows.Example"),
        ("https://gateway.example/generio/", None, "https://gateway.example/generio"),
        ("http://[::1]:8084", None, "http://[::1]:8084"),
    ],
)
def test_host_may_carry_scheme_and_port(host: str | None, port: int | None, expected: str) -> None:
    """A host is a name or a URL with scheme, port and path; without a scheme it is https."""
    assert parse_base_url(connection(host=host, port=port), DEFAULT) == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("generio://:key@flows.example/http", "http://flows.example"),
        ("generio://:key@flows.example/https", "https://flows.example"),
        ("generio://:key@flows.example:8084/HTTP", "http://flows.example:8084"),
        ("generio://http://:key@flows.example/http", "http://flows.example"),
        ("generio://:key@flows.example/", "https://flows.example"),
        ("generio://:key@gateway.example/generio", "https://gateway.example/generio"),
        ("generio://:key@gateway.example:8443/a/b-c/?read_timeout=3", "https://gateway.example:8443/a/b-c"),
        ("generio://http://:key@127.0.0.1:8084/pre.fix", "http://127.0.0.1:8084/pre.fix"),
        ("generio://:key@/generio", f"{DEFAULT}/generio"),
    ],
)
def test_path_of_a_uri_is_the_scheme_or_the_path(
    monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    """The path in a connection's URI, which Airflow calls its schema, is not dropped."""
    monkeypatch.setenv("AIRFLOW_CONN_C", uri)
    assert GenerioHook("c").settings.base_url == expected


@pytest.mark.parametrize(
    ("host", "schema"),
    [
        ("http://flows.example", "https"),
        ("https://flows.example", "http"),
        ("https://flows.example/generio", "gateway"),
        ("flows.example/generio", "gateway"),
        ("flows.example", "ftp://x"),
        ("flows.example", "a b"),
        ("flows.example", "a/../b"),
        ("flows.example", ".."),
        ("flows.example", "a//b"),
        ("flows.example", "a?b=c"),
        ("flows.example", "a#b"),
        ("flows.example", "a%2Fb"),
        ("flows.example", "@other.example"),
    ],
)
def test_schema_that_contradicts_the_host_is_rejected(host: str, schema: str) -> None:
    """A schema that cannot be honoured is an error that names the field and the connection."""
    with pytest.raises(FlowInputError, match=r"The schema of connection 'c' .*the schema is the path"):
        parse_base_url(connection(host=host, schema=schema), DEFAULT)


def test_key_in_the_login_is_not_used() -> None:
    """A connection with its key in the wrong field gets an error that names both fields."""
    with pytest.raises(FlowInputError, match=r"no password \(its login is not used\).*password field"):
        get_token(connection(login="key", password=None))


@pytest.mark.parametrize(
    "host",
    [
        "ftp://x",
        "http://",
        "https://u:secret@x",
        "https://:secret@x",
        "http://x?y=secret",
        "http://x:notaport",
        "http://[::1",
        "http://x:99999",
    ],
)
def test_an_invalid_host_is_rejected(host: str) -> None:
    """An invalid host is an error that names the connection and repeats no secret."""
    with pytest.raises(FlowInputError, match="host of connection 'c'") as caught:
        parse_base_url(connection(host=host), DEFAULT)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("password", [None, "", "  ", "two words", "line\nbreak", "schlüssel", "tab\there"])
def test_an_invalid_key_is_rejected(password: str | None) -> None:
    """A missing or invalid key is an error that names the field and omits the key."""
    with pytest.raises(FlowInputError, match="password field") as caught:
        get_token(connection(password=password))
    assert not password or not password.strip() or password not in str(caught.value)


def test_whitespace_around_a_key_is_stripped() -> None:
    """A key that was copied with its line end works."""
    assert get_token(connection(password=" key\n")) == "key"


EXTRA = {"read_timeout": 7, "verify": False}
HOST_AS_URL = {"conn_type": "generio", "host": "http://127.0.0.1:8084", "password": "k%", "extra": EXTRA}
HOST_AND_PORT = {
    "conn_type": "generio",
    "host": "127.0.0.1",
    "port": 8084,
    "password": "k%",
    "extra": json.dumps(EXTRA),
}
SPELLINGS = {
    "JSON": json.dumps(HOST_AS_URL),
    "JSON, extra as text": json.dumps(HOST_AND_PORT),
    "URI": "generio://http://:k%25@127.0.0.1:8084?read_timeout=7&verify=false",
    "URI, https": "generio://:k%25@127.0.0.1:8084/?read_timeout=7.0&verify=False",
    "URI, host quoted": "generio://:k%25@http%3A%2F%2F127.0.0.1%3A8084/?read_timeout=7&verify=0",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_connection_is_parsed(monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    """JSON and URI mean the same, as Airflow documents them."""
    monkeypatch.setenv("AIRFLOW_CONN_SPELT", SPELLINGS[spelling])
    settings = GenerioHook("spelt").settings
    assert settings.base_url.partition("://")[2] == "127.0.0.1:8084"
    assert settings.base_url.startswith("http://") or spelling in {"URI, https", "JSON, extra as text"}
    assert settings.credentials == {"Authorization": "Bearer k%"}
    assert (settings.read_timeout, settings.verify) == (7.0, False)


def test_values_of_the_form_are_parsed() -> None:
    """What the form saves, with nulls and blanks for empty fields, is parsed into the defaults."""
    for table in (GENERIO_FIELDS, PROMPTCHAINER_FIELDS):
        expected = {name: field.default for name, field in table.items()}
        assert parse_extra(connection(extra=json.dumps(dict.fromkeys(table))), table) == expected
        assert parse_extra(connection(extra=json.dumps(dict.fromkeys(table, ""))), table) == expected
        assert parse_extra(connection(extra=None), table) == expected
        assert parse_extra(connection(extra='{"unknown": 1}'), table) == expected


def test_defaults_of_timeouts_are_the_services() -> None:
    """Every request has a connect and a read timeout; PromptChainer's one long request has five minutes."""
    assert (GENERIO_FIELDS["connect_timeout"].default, GENERIO_FIELDS["read_timeout"].default) == (10, 60)
    assert PROMPTCHAINER_FIELDS["read_timeout"].default == 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("read_timeout", value) for value in ("soon", 0, -1, True, [], {}, "nan", "inf")),
        *(("retries", value) for value in (-1, 1.5, "many", True, float("inf"))),
        *(("verify", value) for value in ("maybe", 2, [])),
        *(("ca_bundle", value) for value in (5, {}, True)),
        ("max_response_mib", 0),
    ],
)
def test_an_invalid_extra_names_the_field(name: str, value: Any) -> None:
    """A field with a wrong value is an error that names the field, the connection and the type."""
    with pytest.raises(FlowInputError, match=f"{name} in the extra of connection 'c' must be of type "):
        parse_extra(connection(extra=json.dumps({name: value})), GENERIO_FIELDS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("pictures.example.com", ("pictures.example.com",)),
        (" Pictures.Example.com. ,*.example.org,, ", ("pictures.example.com", "*.example.org")),
        (
            ["a.example.com", "*.my_bucket.s3.amazonaws.com"],
            ("a.example.com", "*.my_bucket.s3.amazonaws.com"),
        ),
        ("xn--bcher-kva.example", ("xn--bcher-kva.example",)),
        (" , ", ()),
    ],
)
def test_picture_hosts_are_added_to_those_of_the_service(value: Any, expected: tuple[str, ...]) -> None:
    """The field is a text with commas, or a list in JSON; the service's own hosts remain."""
    assert settings({"picture_hosts": value}).picture_hosts == expected
    hook = PromptChainerHook("c")
    hook._connection = connection(extra=json.dumps({"picture_hosts": value}))
    own = ("oaidalleapiprodscus.blob.core.windows.net",)
    assert hook.settings.picture_hosts == (*own, *expected)


@pytest.mark.parametrize(
    "value",
    [
        *("*", "*.", "*.com", "com", "localhost", "a.localhost", "db.internal", "a.svc", "*.local"),
        *("127.0.0.1", "8.8.8.8", "10.1", "[::1]", "2606:4700::1", "a.0x7f"),
        *("https://a.example", "a.example/path", "a.example:443", "u@a.example", "a..example", ".a.example"),
        *("a.*.example", "*a.example", "**.example.com", "a.example b.example", "-a.example", "a-.example"),
        *("b\u00fccher.example", "a\n.example", f"{'a' * 64}.example", f"{'a.' * 130}example"),
        *(5, {}, True, [5], [["a.example"]]),
    ],
)
def test_invalid_picture_hosts_are_rejected(value: Any) -> None:
    """Anything but names of public hosts, and patterns for the hosts below a domain, is an error."""
    with pytest.raises(FlowInputError, match="picture_hosts in the extra of connection 'c' must be names of"):
        settings({"picture_hosts": value})


@pytest.mark.parametrize("extra", ["[]", "5", "{", "text"])
def test_extra_must_be_an_object(extra: str) -> None:
    """An extra that is not a JSON object is an error with an example."""
    with pytest.raises(FlowInputError, match="connection 'c' must be a JSON object"):
        parse_extra(Connection(conn_id="c", conn_type="generio", extra=extra), GENERIO_FIELDS)


def test_precedence_of_ca_bundles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`verify` off takes precedence over `ca_bundle`, which takes precedence over REQUESTS_CA_BUNDLE."""
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    for bundle in (ours, theirs):
        bundle.write_text("-----BEGIN CERTIFICATE-----")
    assert settings({}).verify is True
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(theirs))
    assert settings({}).verify == str(theirs)
    assert settings({"ca_bundle": str(ours)}).verify == str(ours)
    assert settings({"ca_bundle": str(ours), "verify": False}).verify is False


def test_a_missing_bundle_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing bundle is an error that names its source: the connection's field or the variable."""
    with pytest.raises(FlowInputError, match="ca_bundle in the extra of connection 'c'"):
        settings({"ca_bundle": str(tmp_path / "gone.pem")})
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    with pytest.raises(FlowInputError, match="REQUESTS_CA_BUNDLE must be the path"):
        settings({})


def settings(extra: dict[str, Any]) -> Any:
    """Return the settings of a hook with this extra."""
    hook = GenerioHook("c")
    hook._connection = connection(extra=json.dumps(extra))
    return hook.settings


def test_form_has_every_field_that_is_parsed() -> None:
    """Provider info declares each field that is parsed, with its default."""
    forms = {
        entry["connection-type"]: entry["conn-fields"] for entry in get_provider_info()["connection-types"]
    }
    for kind, table in (("generio", GENERIO_FIELDS), ("promptchainer", PROMPTCHAINER_FIELDS)):
        assert {name: shown["schema"].get("default") for name, shown in forms[kind].items()} == {
            name: field.default for name, field in table.items()
        }
