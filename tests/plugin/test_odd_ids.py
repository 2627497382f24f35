"""Tests that the pages show runs and flows whose ids and names have any characters."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.parse import quote, unquote, urlsplit

import pytest
from fastapi.testclient import TestClient

from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from tests.support.plugin_site import airflow_clients, save_connections, serve
from tests.support.servers import ReceivedRequest, StubResponse, StubServer

pytestmark = [
    pytest.mark.usefixtures("no_proxy"),
    # raised by Airflow's own model of a connection in its database
    pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated"),
]

TEXT = "a text of this run"
ODD_IDS = {
    "a slash": "acme/upscale",
    "several slashes": "acme/upscale/requests/7f3a",
    "the paths of other pages": "a/output/0",
    "the end of another page": "a/run/b",
    "two slashes": "a//b",
    "a leading slash": "/a",
    "a trailing slash": "a/",
    "dot segments": "a/../../b",
    "a percent sign": "100%",
    "a quoted slash": "a%2Fb",
    "a slash quoted twice": "a%252Fb",
    "a question mark": "a?b=c",
    "a hash": "a#b",
    "an ampersand": "a&b;c",
    "a blank": "a b",
    "blanks only inside": "a  b",
    "a plus": "a+b",
    "a colon": "flow:7",
    "an at sign": "me@host",
    "a backslash": "a\\b",
    "quotes": "a\"b'c",
    "markup": "<b>a</b>",
    "dots": "v1.2.3",
    "three dots": "...",
    "a tilde": "~a",
    "braces": "{flow_run_id}",
    "unicode": "gr\u00fcner-Stuhl-\u6905\u5b50",
    "an emoji": "\U0001fa91",
    "the name of a page": "json",
}


def reply(request: ReceivedRequest) -> StubResponse:
    """Respond as Generio with a completed run of each id, whose flow has the same name."""
    parts = urlsplit(request.path).path.split("/")[1:]
    ids = list(ODD_IDS.values())
    if parts == ["flows"]:
        return StubResponse(body=json.dumps([to_run(one) for one in ids]).encode())
    if parts == ["templates"]:
        return StubResponse(body=json.dumps([{"id": one, "name": one} for one in ids]).encode())
    if len(parts) < 2 or unquote(parts[1]) not in ids:
        return StubResponse(404)
    if parts[2:] == ["outputs"]:
        row = {"asset_id": "a1", "name": "text", "media_type": "text/plain", "status": "ready"}
        return StubResponse(body=json.dumps([row]).encode())
    if parts[2:] == ["outputs", "a1"]:
        return StubResponse(headers={"Content-Type": "text/plain"}, body=TEXT.encode())
    return StubResponse(body=json.dumps(to_run(unquote(parts[1]))).encode())


def to_run(flow_run_id: str) -> dict[str, object]:
    """Return a run as Generio's API has it."""
    return {
        "flow_id": flow_run_id,
        "template": {"name": flow_run_id},
        "state": "completed",
        "created_at": "2026-01-01T00:00:00Z",
    }


@pytest.fixture(scope="module")
def anna(airflow_database: None) -> Iterator[TestClient]:  # noqa: ARG001  # a fixture requests another
    """Yield an administrator's client, with a connection to a service that has odd ids."""
    RESPONSE_CACHE.clear()
    with StubServer(reply) as stub, airflow_clients() as clients:
        save_connections({"odd": {"conn_type": "generio", "host": stub.url, "password": "key"}})
        yield clients["anna"]


@pytest.fixture(scope="module")
def site(anna: TestClient) -> Iterator[str]:
    """Serve the pages over HTTP, because a test client unquotes a path twice, and no server does."""
    with serve(anna) as url:
        yield url


def get(site: str, client: TestClient, path: str) -> tuple[int, str]:
    """Request a page with a path that is sent as it is; return status and body."""
    parts = urlsplit(site)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    connection.request("GET", path, headers={"Cookie": cookie})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


@pytest.mark.parametrize("flow_run_id", ODD_IDS.values(), ids=ODD_IDS)
def test_a_run_and_its_output_are_shown(anna: TestClient, site: str, flow_run_id: str) -> None:
    """The page of a run, its JSON, and its output are found by the quoted id, and link to themselves."""
    run_path = f"connection/odd/run/{quote(flow_run_id, safe='')}"
    status, page = get(site, anna, f"/flows/{run_path}")
    assert (status, f"<code>{flow_run_id}</code>" in html.unescape(page)) == (200, True)
    assert f'data-json="/flows/json/{run_path}"' in page
    status, text = get(site, anna, f"/flows/json/{run_path}")
    assert (status, json.loads(text)["run"]["flow_run_id"]) == (200, flow_run_id)
    assert get(site, anna, f"/flows/{run_path}/output/0") == (200, TEXT)
    assert f'href="/flows/{run_path}/output/0"' in page


@pytest.mark.parametrize("flow", ODD_IDS.values(), ids=ODD_IDS)
def test_the_page_of_a_flow_is_shown(anna: TestClient, site: str, flow: str) -> None:
    """The page of a flow is found by its quoted name."""
    status, page = get(site, anna, f"/flows/connection/odd/flow/{quote(flow, safe='')}")
    assert (status, f"<h1>{flow}</h1>" in html.unescape(page)) == (200, True)


def test_every_link_of_the_list_leads_to_its_run(anna: TestClient, site: str) -> None:
    """Each row of the list links to the page of that run."""
    found = {}
    for number in (1, 2):
        _, page = get(site, anna, f"/flows/connection/odd?page={number}")
        for row in page.split('<tr role="row" data-run="')[1:]:
            link = re.search(r'href="([^"]+/run/[^"]+)"', row)
            assert link is not None
            found[html.unescape(row.partition('"')[0])] = html.unescape(link[1])
    assert set(found) == {*ODD_IDS.values()}
    for flow_run_id, link in found.items():
        status, page = get(site, anna, link)
        assert (status, f"<code>{flow_run_id}</code>" in html.unescape(page)) == (200, True), flow_run_id


@pytest.mark.parametrize("path", ["run/acme/upscale", "flow/acme/upscale", "run/acme/upscale/output/0"])
def test_a_proxy_may_unquote_slashes(anna: TestClient, site: str, path: str) -> None:
    """Behind a proxy that unquotes paths, the pages of an id with a slash are found as well."""
    assert get(site, anna, f"/flows/connection/odd/{path}")[0] == 200


@pytest.mark.parametrize("path", ["odd/run", "odd/run/", "odd/runs/a", "odd/a/run/b", "odd/flow/"])
def test_other_paths_are_not_found(anna: TestClient, site: str, path: str) -> None:
    """A path of no page is still not found."""
    assert get(site, anna, f"/flows/connection/{path}")[0] == 404
