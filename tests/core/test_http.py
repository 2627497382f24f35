"""Tests of requests and responses as values."""

from __future__ import annotations

from airflow_provider_flows.core.http import Response


def test_repr_of_a_response_has_no_signature() -> None:
    """The repr of a response contains neither its URL nor its body."""
    text = repr(Response(200, {}, b"body-secret", "https://h/?sig=secret"))
    assert "secret" not in text
