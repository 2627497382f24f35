"""Tests of how a response becomes a value or an error."""

from __future__ import annotations

import pytest

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowInvalid,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowRateLimited,
    FlowServiceError,
)
from airflow_provider_flows.core.http import Request
from airflow_provider_flows.core.responses import raise_for_status
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


def test_a_long_reason_is_truncated() -> None:
    """A long reason from the service is truncated in the error."""
    with pytest.raises(FlowServiceError) as caught:
        raise_for_status(Request("GET", "/flows"), json_response(b"x" * 1_000_000, 500))
    assert len(str(caught.value)) < 1_000
