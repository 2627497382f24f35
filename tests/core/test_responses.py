"""Tests of how a response becomes a value or an error."""

from __future__ import annotations

import pytest

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowServiceError,
)
from airflow_provider_flows.core.http import Request, Response
from airflow_provider_flows.core.responses import parse_json, raise_for_status
from tests.support.scripted_transport import json_response


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, FlowServiceError) for status in (101, 302, 405, 500, 503, 999)),
        *((status, FlowInvalid) for status in (400, 413, 415, 422)),
        *((status, FlowAuthError) for status in (401, 403)),
        *((status, FlowConflict) for status in (409, 425)),
        (404, FlowNotFound),
        (402, FlowQuotaExceeded),
        (429, FlowRateLimited),
    ],
)
def test_each_status_is_its_error(status: int, kind: type[FlowServiceError]) -> None:
    """Each status raises one type of error, with the status, the request and the service's reason."""
    with pytest.raises(FlowServiceError) as caught:
        raise_for_status(
            Request("GET", "/flows"), json_response({"detail": "because"}, status, retry_after="7")
        )
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.retry_after) == (status, 7.0)
    assert f"GET /flows returned HTTP {status}" in str(caught.value)
    assert "because" in str(caught.value)


PAGE = b"<!DOCTYPE HTML>\n<html><head><title>Error response</title></head><body>no</body></html>"
PAGES: dict[int, tuple[type[FlowServiceError], str, bool]] = {
    200: (FlowMalformed, "the host is perhaps another web server. Check the connection's host", True),
    400: (FlowInvalid, "or the host is another web server", False),
    401: (FlowServiceError, "this says nothing about the API key", False),
    404: (FlowNotFound, "or the host is another web server", False),
    405: (FlowServiceError, "or the host is another web server", False),
    500: (FlowServiceError, "the host is perhaps another web server. Check the connection's host", True),
    501: (FlowServiceError, "the host is perhaps another web server. Check the connection's host", True),
    505: (FlowServiceError, "the host is perhaps another web server. Check the connection's host", True),
    **dict.fromkeys(
        (502, 503, 504), (FlowServiceError, "a gateway has answered that does not reach the service", True)
    ),
}


@pytest.mark.parametrize("status", PAGES)
def test_page_in_html_is_not_the_service(status: int) -> None:
    """A page in HTML is named with its title, whatever its status, and the host is to be checked."""
    kind, hint, is_transient = PAGES[status]
    with pytest.raises(FlowServiceError) as caught:
        parse_json(Request("POST", "/flows"), Response(status, body=PAGE))
    message = str(caught.value)
    assert (type(caught.value), caught.value.is_transient) == (kind, is_transient)
    assert "A page in HTML ('Error response') came instead of the service's JSON, so " in message
    assert hint in message
    assert ("try again later" in message) == (status in {502, 503, 504})
    assert ("DOCTYPE" in message) == (status == 200)


NOT_FOUND = {
    "a run": (Request("GET", "/flows/r", argument="flow_run_id"), "", "name or id (flow_run_id); check"),
    "a flow": (Request("POST", "/flows", argument="flow"), "", "name or id (flow); check it"),
    "a list": (Request("GET", "/flows"), "", "nothing at that address. Check the connection's host; then"),
    "a run below a path": (
        Request("GET", "/flows/r", argument="flow_run_id"),
        "/api/v2",
        "The connection's host has the path '/api/v2': check first that the service's API is there. The",
    ),
    "a list below a path": (
        Request("GET", "/flows"),
        "/api/v2",
        "The connection's host has the path '/api/v2': check first that the service's API is there. The",
    ),
}


@pytest.mark.parametrize("case", NOT_FOUND)
def test_404_names_what_to_check(case: str) -> None:
    """A 404 names the argument that the request is about, and first the host if that has a path."""
    request, path, hint = NOT_FOUND[case]
    response = Response(404, body=b"{}", url=f"https://flows.example{path}{request.path}?a=b")
    with pytest.raises(FlowNotFound) as caught:
        raise_for_status(request, response)
    assert hint in str(caught.value)
    assert ("has the path" in str(caught.value)) == bool(path)


def test_rate_limit_names_the_remedies() -> None:
    """A 429 names what limits requests: a pool, the connection's rate, and the retries of tasks."""
    with pytest.raises(FlowRateLimited, match=r"a pool.*max_requests_per_second.*retries, retry_delay"):
        raise_for_status(Request("GET", "/flows"), json_response({}, 429))


def test_a_long_reason_is_truncated() -> None:
    """A long reason from the service is truncated in the error."""
    with pytest.raises(FlowServiceError) as caught:
        raise_for_status(Request("GET", "/flows"), json_response(b"x" * 1_000_000, 500))
    assert len(str(caught.value)) < 1_000
