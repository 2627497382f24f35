"""Tests of the retries of single requests: which are sent again, when, and how often.

Time is scripted: delays are recorded, not waited for.
"""

from __future__ import annotations

import contextlib
from email.utils import format_datetime

import pendulum
import pytest

from airflow_provider_flows.core.exceptions import FlowRateLimited, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.http import Request, Resend, Response
from airflow_provider_flows.core.retry import NO_RETRY, Retry, with_retries
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.drivers import single_request
from tests.support.scripted_transport import (
    NOON,
    ScriptedTransport,
    json_response,
    no_response,
    request_lines,
)

GET = Request("GET", "/flows")
OK = json_response([])
FULL = Retry(attempts=4, initial_delay=1.0, max_delay=60.0, jitter=lambda: 1.0, now=lambda: NOON)


def send_with_retries(
    request: Request, *responses: Response | FlowServiceError, retry: Retry = FULL
) -> tuple[int, list[float]]:
    """Send a request with retries, and return how often it was sent, and the delays between."""
    script = ScriptedTransport(*responses)
    with contextlib.suppress(FlowUnreachable):
        script.run(with_retries(single_request(request), retry))
    return len(script.requests), script.sleeps


@pytest.mark.parametrize(
    "failure",
    [
        no_response(),
        no_response(may_have_arrived=False),
        *(json_response({}, code) for code in (429, 502, 503, 504)),
    ],
)
def test_idempotent_request_is_sent_again(failure: Response | FlowServiceError) -> None:
    """A GET is sent again after no response, 429, 502, 503 and 504, until the first success."""
    assert send_with_retries(GET, failure, failure, OK) == (3, [1.0, 2.0])


@pytest.mark.parametrize("code", [200, 400, 401, 403, 404, 409, 422, 500, 501])
def test_other_responses_are_returned(code: int) -> None:
    """Any other response is final."""
    assert send_with_retries(GET, json_response({}, code)) == (1, [])


def test_attempts_are_bounded() -> None:
    """After the last attempt its response is returned, or its error is raised."""
    assert send_with_retries(GET, *[json_response({}, 503)] * 4) == (4, [1.0, 2.0, 4.0])
    assert send_with_retries(GET, *[no_response()] * 4) == (4, [1.0, 2.0, 4.0])
    assert send_with_retries(GET, json_response({}, 503), retry=Retry(attempts=1)) == (1, [])


def test_backoff_is_exponential_with_full_jitter_and_a_bound() -> None:
    """A delay is between nothing and a bound that doubles each time, up to the maximum."""
    half = Retry(attempts=9, initial_delay=1.0, max_delay=20.0, jitter=lambda: 0.5)
    _, delays = send_with_retries(GET, *[no_response()] * 9, retry=half)
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    none = Retry(attempts=4, jitter=lambda: 0.0)
    assert send_with_retries(GET, *[no_response()] * 4, retry=none)[1] == [0.0, 0.0, 0.0]


def test_default_jitter_covers_the_delay() -> None:
    """With the default jitter, the first delays of many clients are spread over the first second."""
    first_delays = [send_with_retries(GET, no_response(), OK, retry=Retry())[1][0] for _ in range(200)]
    assert min(first_delays) < 0.2
    assert max(first_delays) > 0.8
    assert all(0 <= first <= 1 for first in first_delays)


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_retry_after_in_seconds_is_honoured(code: int) -> None:
    """A longer Retry-After extends the delay; a shorter one does not reduce it."""
    assert send_with_retries(GET, json_response({}, code, retry_after="17"), OK)[1] == [17.0]
    assert send_with_retries(GET, json_response({}, code, retry_after="0"), OK)[1] == [1.0]


@pytest.mark.parametrize("zone", ["GMT", "-0000", ""])
def test_retry_after_as_a_date_is_honoured(zone: str) -> None:
    """A date is honoured, and is read as UTC if it has no zone."""
    date = format_datetime(pendulum.from_timestamp(NOON + 30)).replace("+0000", zone).strip()
    assert send_with_retries(GET, json_response({}, 503, retry_after=date), OK)[1] == [30.0]


@pytest.mark.parametrize("value", ["soon", "-5", "Wed, 99 Foo", "²", "", "nan", "inf"])
def test_invalid_retry_after_is_ignored(value: str) -> None:
    """A value that is neither seconds nor a date changes nothing."""
    assert send_with_retries(GET, json_response({}, 503, retry_after=value), OK)[1] == [1.0]


@pytest.mark.parametrize("value", ["61", "1e99"])
def test_delay_beyond_the_maximum_ends_the_retries(value: str) -> None:
    """If the service requests more than the maximum delay, its response is final."""
    assert send_with_retries(GET, json_response({}, 429, retry_after=value), OK)[0] == 1


@pytest.mark.parametrize(
    ("resend", "failure", "times"),
    [
        (Resend.IF_REFUSED, no_response(), 1),
        (Resend.IF_REFUSED, no_response(may_have_arrived=False), 2),
        (Resend.IF_REFUSED, json_response({}, 429), 2),
        (Resend.IF_REFUSED, json_response({}, 503), 1),
        (Resend.IF_NEVER_ARRIVED, no_response(), 1),
        (Resend.IF_NEVER_ARRIVED, no_response(may_have_arrived=False), 2),
        (Resend.IF_NEVER_ARRIVED, json_response({}, 429), 1),
        (Resend.IF_NEVER_ARRIVED, json_response({}, 503), 1),
    ],
)
def test_changing_request_is_not_sent_blindly(
    resend: Resend, failure: Response | FlowServiceError, times: int
) -> None:
    """A POST is sent again only if it cannot have arrived, or if the service did nothing and it is free."""
    assert send_with_retries(Request("POST", "/flows", json={}, resend=resend), failure, OK)[0] == times


def test_resend_of_every_changing_request() -> None:
    """A request that is billed is resent only if it never arrived; other changes also after a 429."""
    generio, chain, item = Generio(), PromptChainer(), FlowInput("p")
    conversations = (
        (generio.start("t", [item], None, None), [json_response({"flow_id": "r"})], Resend.IF_NEVER_ARRIVED),
        (chain.start("f", {"a": "1"}, None, None), [json_response([])], Resend.IF_NEVER_ARRIVED),
        (generio.create("t", None, None), [json_response({"flow_id": "r"})], Resend.IF_REFUSED),
        (generio.add_input("r", item), [json_response({})], Resend.IF_REFUSED),
        (generio.start_created_run("r"), [json_response({})], Resend.IF_REFUSED),
    )
    for conversation, responses, resend in conversations:
        script = ScriptedTransport(*responses)
        script.run(conversation)
        assert script.requests[-1].resend is resend


def test_no_retry_sends_once() -> None:
    """The polls of a wait are not repeated by the HTTP layer: the wait does that."""
    script = ScriptedTransport(json_response({}, 503))
    assert script.run(with_retries(single_request(GET), NO_RETRY)).status == 503
    assert script.sleeps == []


def test_start_whose_response_is_lost_is_sent_once(flow_emulator: Emulator) -> None:
    """A POST with inputs whose response is lost creates one run and an error, not two runs."""
    flow_emulator.add_fault(Fault("POST", "/flows", reset="after", times=None))
    with pytest.raises(FlowUnreachable, match="may have acted"):
        GenerioHook("generio_default").start("model_generate_fromprompt", "a chair", validate=False)
    assert request_lines(flow_emulator.requests) == ["POST /flows"]
    assert flow_emulator.started_count == 1


@pytest.mark.parametrize(
    "fault", [Fault("POST", reset="after"), Fault("POST", status=503), Fault("POST", status=429)]
)
def test_chain_is_never_run_twice(flow_emulator: Emulator, fault: Fault) -> None:
    """A PromptChainer run that may have arrived is never sent again."""
    flow_emulator.run_seconds = 0
    flow_emulator.add_fault(fault)
    with pytest.raises(FlowServiceError):
        PromptChainerHook("promptchainer_default").start(
            "clibnwpno000bmc0k9hvv3y7f", {"color": "Red", "item": "Ball"}
        )
    assert [request.method for request in flow_emulator.requests] == ["GET", "POST"]


def test_retries_are_set_on_the_connection(flow_emulator: Emulator) -> None:
    """`retries` in the connection's extra is how often a request is sent again."""
    flow_emulator.add_fault(Fault(status=429, times=None))
    hook = GenerioHook("generio_default")
    hook.connection.extra = '{"retries": 1}'
    with pytest.raises(FlowRateLimited):
        hook.list_runs()
    assert len(flow_emulator.requests) == 2
