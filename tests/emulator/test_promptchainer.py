"""Tests of the emulated PromptChainer: evaluation of flow graphs, signed URLs of images, errors."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from PIL import Image

from airflow_provider_flows.emulator import Emulator
from tests.emulator.client import SAMPLE_FLOW, EmulatorClient


@pytest.fixture(autouse=True)
def _immediate_chains(emulator: Emulator) -> None:
    emulator.switches.chain_seconds = 0.0


def node(node_id: str, kind: str, **data: object) -> dict[str, Any]:
    """Return one node of a graph."""
    return {"id": node_id, "type": kind, "data": data}


def variable(label: str) -> dict[str, Any]:
    """Return a variable's node; its id is its label."""
    return node(label, "variableNode", variable={"label": label, "value": "at design time"})


def graph(nodes: list[dict[str, Any]], *wires: str) -> dict[str, Any]:
    """Return a graph; an edge is written source>target."""
    edges = [dict(zip(("source", "target"), wire.split(">"), strict=True)) for wire in wires]
    return {"nodes": nodes, "edges": edges}


def outputs(client: EmulatorClient, **variables: str) -> list[tuple[str, str]]:
    """Run the flow `test`, and return the names and values of its outputs."""
    response = client.run_chain("test", **variables)
    assert response.status_code == 200, response.text
    return [(item["name"], item["output"]) for item in response.json()]


def test_outputs_depend_on_the_variables(emulator: Emulator, client: EmulatorClient) -> None:
    """Prompts are filled in; the same variables result in the same text, others in another."""
    first = client.run_chain(color="Red", item="Ball").json()
    assert client.run_chain(color="Red", item="Ball").json()[1] == first[1]
    assert "A joke about a Red and big Ball" in first[1]["output"]
    assert "Green" in client.run_chain(color="Green", item="Ball").json()[1]["output"]
    assert emulator.started_count == 3
    assert emulator.paid_runs[0].inputs == {"color": "Red", "item": "Ball"}


def test_picture_is_served_by_its_signed_url(client: EmulatorClient) -> None:
    """The URL alone returns a PNG in the prompt's colour, for the next hour."""
    url = client.run_chain().json()[0]["output"]
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert (query["sp"], query["sr"], query["rscd"], query["rsct"]) == ("r", "b", "inline", "image/png")
    ahead = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(time.time() + 3600))
    assert query["se"][:15] == ahead[:15] or query["se"] > ahead
    response = requests.get(url, timeout=10)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.getpixel((256, 200))) == ("PNG", (200, 40, 36))
    assert (
        requests.get(client.run_chain(color="Blue", item="Ball").json()[0]["output"], timeout=10).content
        != response.content
    )


@pytest.mark.parametrize("how", ["expired", "later end", "other signature", "no signature", "other picture"])
def test_invalid_urls_are_rejected(emulator: Emulator, client: EmulatorClient, how: str) -> None:
    """A URL that expired or was changed gets 403 with an error in Azure's XML."""
    url = client.run_chain().json()[0]["output"]
    if how == "expired":
        emulator.advance(3601)
    changes = {
        "later end": ("&se=20", "&se=21"),
        "other signature": ("&sig=", "&sig=A"),
        "no signature": ("&sig=", "&gis="),
        "other picture": ("img-", "img-0"),
    }
    response = requests.get(url.replace(*changes.get(how, ("", ""))), timeout=10)
    assert (response.status_code, response.headers["content-type"]) == (403, "application/xml")
    assert "<Code>AuthenticationFailed</Code>" in response.text
    assert ("Signed expiry time" in response.text) == (how == "expired")


def test_nodes_are_evaluated_in_the_order_of_their_edges(emulator: Emulator, client: EmulatorClient) -> None:
    """An action's result fills a later prompt, in any order of the nodes in the file."""
    nodes = [
        node("o", "outputNode", name="TL;DR"),
        node("b", "actionNode", name="second", prompt="shorten: {first}"),
        node("a", "actionNode", name="first", prompt="sing of {thing} and {unwired}"),
        variable("thing"),
    ]
    emulator.add_graph("test", graph(nodes, "b>o", "a>b", "thing>a"))
    ((name, text),) = outputs(client, thing="ships")
    assert name == "TL;DR"
    assert "shorten: " in text
    assert "sing of ships and {unwired}" in text


def test_design_time_values_are_ignored(emulator: Emulator, client: EmulatorClient) -> None:
    """A variable's value in the graph is not used in a run."""
    emulator.add_graph("test", graph([variable("thing"), node("o", "outputNode", name="out")], "thing>o"))
    assert outputs(client, thing="") == [("out", "")]


def test_output_names_may_be_duplicates(emulator: Emulator, client: EmulatorClient) -> None:
    """Two outputs of one name are two elements, in node order."""
    nodes = [variable("a"), variable("b"), *(node(name, "outputNode", name="out") for name in ("x", "y"))]
    emulator.add_graph("test", graph(nodes, "b>x", "a>y"))
    assert outputs(client, a="1", b="2") == [("out", "2"), ("out", "1")]


def test_unknown_nodes_have_an_empty_result(emulator: Emulator, client: EmulatorClient) -> None:
    """Code and conditions have an empty result, and do not stop the evaluation."""
    nodes = [
        node("c", "codeNode", name="code", code="print(1)"),
        node("a", "actionNode", name="act", prompt="<{code}>"),
        node("o", "outputNode", name="out"),
        node("n", "outputNode", name="unwired"),
    ]
    emulator.add_graph("test", graph(nodes, "c>a", "a>o"))
    result = dict(outputs(client))
    assert "<>" in result["out"]
    assert result["unwired"] == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": []}, "edges"),
        (graph([variable("a")], "a>b"), "not there: b"),
        (graph([node("a", "x"), node("b", "x")], "a>b", "b>a"), "circle"),
        (graph([node("o", "outputNode")]), "name of an output"),
    ],
)
def test_an_invalid_graph_is_rejected(emulator: Emulator, wrong: dict[str, Any], message: str) -> None:
    """An invalid flow graph is rejected when it is added, with the reason."""
    with pytest.raises(ValueError, match=message):
        emulator.add_graph("test", wrong)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"variables": {"color": "Red"}}', 400),
        (b'{"variables": {"Color": "Red", "item": "Ball"}}', 400),
        (b'{"variables": {"color": 1, "item": "Ball"}}', 400),
        (b'{"variables": ["color"]}', 400),
        (b"[]", 400),
        (b"", 400),
        (b"{", 400),
        (b'{"variables": {"color": "Red", "item": "Ball", "more": 1}}', 200),
    ],
)
def test_variables_are_checked(emulator: Emulator, client: EmulatorClient, body: bytes, status: int) -> None:
    """A missing, misspelt or non-text variable is rejected before anything is billed."""
    response = client.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", data=body)
    assert response.status_code == status
    assert emulator.started_count == (status == 200)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"Authorization": "Bearer emulator"}])
def test_requests_without_the_key_are_rejected(client: EmulatorClient, headers: dict[str, str]) -> None:
    """Without the key in x-api-key the status is 401."""
    client.session.headers.clear()
    assert client.call("GET", f"/api/flows/getFlowInfo/{SAMPLE_FLOW}", headers=headers).status_code == 401
    assert client.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", headers=headers, json={}).status_code == 401


def test_unknown_flows_are_not_found(client: EmulatorClient) -> None:
    """An unknown flow is 404, and so is the name that the vendor's prose uses for the endpoint."""
    assert client.call("GET", "/api/flows/getFlowInfo/unknown").json() == {"error": "Flow not found"}
    assert client.run_chain("unknown").status_code == 404
    assert client.call("GET", f"/api/flows/get-flow-info/{SAMPLE_FLOW}").status_code == 404


def test_any_origin_is_allowed(client: EmulatorClient) -> None:
    """Any origin may send the key from a browser."""
    headers = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key,content-type",
    }
    response = requests.options(
        f"{client.emulator.url}/api/flows/run/{SAMPLE_FLOW}", headers=headers, timeout=10
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "x-api-key" in response.headers["Access-Control-Allow-Headers"]
    result = client.call(
        "GET", f"/api/flows/getFlowInfo/{SAMPLE_FLOW}", headers={"Origin": "https://example.org"}
    )
    assert result.headers["Access-Control-Allow-Origin"] == "*"


def test_runs_are_concurrent(emulator: Emulator, client: EmulatorClient) -> None:
    """Many runs at once take as long as one."""
    emulator.switches.chain_seconds = 0.4
    start_time = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: client.run_chain(), range(12)))
    assert {response.status_code for response in responses} == {200}
    assert time.monotonic() - start_time < 3
