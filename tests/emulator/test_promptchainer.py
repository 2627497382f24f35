"""PromptChainer's flow graphs are evaluated, and its pictures expire."""

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
from tests.emulator.caller import SAMPLE_FLOW, EmulatorClient


@pytest.fixture(autouse=True)
def _at_once(emulator: Emulator) -> None:
    emulator.switches.chain_seconds = 0.0


def node(node_id: str, kind: str, **data: object) -> dict[str, Any]:
    """Return one node of a graph."""
    return {"id": node_id, "type": kind, "data": data}


def variable(label: str) -> dict[str, Any]:
    """Return a variable's node; its id is its label."""
    return node(label, "variableNode", variable={"label": label, "value": "at design time"})


def graph(nodes: list[dict[str, Any]], *wires: str) -> dict[str, Any]:
    """Return a graph; a wire is written source>target."""
    edges = [dict(zip(("source", "target"), wire.split(">"), strict=True)) for wire in wires]
    return {"nodes": nodes, "edges": edges}


def outputs(caller: EmulatorClient, **variables: str) -> list[tuple[str, str]]:
    """Run the test's flow, and return names with values."""
    answer = caller.run_chain("test", **variables)
    assert answer.status_code == 200, answer.text
    return [(item["name"], item["output"]) for item in answer.json()]


def test_outputs_are_made_from_the_variables(emulator: Emulator, caller: EmulatorClient) -> None:
    """Prompts are filled in; the same variables give the same text, others another."""
    first = caller.run_chain(color="Red", item="Ball").json()
    assert caller.run_chain(color="Red", item="Ball").json()[1] == first[1]
    assert "A joke about a Red and big Ball" in first[1]["output"]
    assert "Green" in caller.run_chain(color="Green", item="Ball").json()[1]["output"]
    assert emulator.started_count == 3
    assert emulator.paid_runs[0].inputs == {"color": "Red", "item": "Ball"}


def test_picture_is_served_by_its_signed_url(caller: EmulatorClient) -> None:
    """The URL alone opens a PNG in the prompt's colour, for an hour from now."""
    url = caller.run_chain().json()[0]["output"]
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert (query["sp"], query["sr"], query["rscd"], query["rsct"]) == ("r", "b", "inline", "image/png")
    ahead = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(time.time() + 3600))
    assert query["se"][:15] == ahead[:15] or query["se"] > ahead
    answer = requests.get(url, timeout=10)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.getpixel((256, 200))) == ("PNG", (200, 40, 36))
    assert (
        requests.get(caller.run_chain(color="Blue", item="Ball").json()[0]["output"], timeout=10).content
        != answer.content
    )


@pytest.mark.parametrize("how", ["expired", "later end", "other signature", "no signature", "other picture"])
def test_bad_urls_are_refused(emulator: Emulator, caller: EmulatorClient, how: str) -> None:
    """A URL that expired or was changed gets 403 with XML in Azure's words."""
    url = caller.run_chain().json()[0]["output"]
    if how == "expired":
        emulator.advance(3601)
    changes = {
        "later end": ("&se=20", "&se=21"),
        "other signature": ("&sig=", "&sig=A"),
        "no signature": ("&sig=", "&gis="),
        "other picture": ("img-", "img-0"),
    }
    answer = requests.get(url.replace(*changes.get(how, ("", ""))), timeout=10)
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/xml")
    assert "<Code>AuthenticationFailed</Code>" in answer.text
    assert ("Signed expiry time" in answer.text) == (how == "expired")


def test_nodes_are_evaluated_in_the_order_of_their_wires(emulator: Emulator, caller: EmulatorClient) -> None:
    """An action's result fills a later prompt, whatever the order in the file."""
    nodes = [
        node("o", "outputNode", name="TL;DR"),
        node("b", "actionNode", name="second", prompt="shorten: {first}"),
        node("a", "actionNode", name="first", prompt="tell of {thing} and {unwired}"),
        variable("thing"),
    ]
    emulator.add_graph("test", graph(nodes, "b>o", "a>b", "thing>a"))
    ((name, text),) = outputs(caller, thing="ships")
    assert name == "TL;DR"
    assert "shorten: " in text
    assert "tell of ships and {unwired}" in text


def test_design_time_values_do_not_count(emulator: Emulator, caller: EmulatorClient) -> None:
    """A variable's value in the graph is not used in a run."""
    emulator.add_graph("test", graph([variable("thing"), node("o", "outputNode", name="out")], "thing>o"))
    assert outputs(caller, thing="") == [("out", "")]


def test_names_may_be_there_twice(emulator: Emulator, caller: EmulatorClient) -> None:
    """Two outputs of one name are two elements, in node order."""
    nodes = [variable("a"), variable("b"), *(node(name, "outputNode", name="out") for name in ("x", "y"))]
    emulator.add_graph("test", graph(nodes, "b>x", "a>y"))
    assert outputs(caller, a="1", b="2") == [("out", "2"), ("out", "1")]


def test_unknown_nodes_are_passed_over(emulator: Emulator, caller: EmulatorClient) -> None:
    """Code and conditions have nothing to say, and stop nothing."""
    nodes = [
        node("c", "codeNode", name="code", code="print(1)"),
        node("a", "actionNode", name="act", prompt="<{code}>"),
        node("o", "outputNode", name="out"),
        node("n", "outputNode", name="unwired"),
    ]
    emulator.add_graph("test", graph(nodes, "c>a", "a>o"))
    shown = dict(outputs(caller))
    assert "<>" in shown["out"]
    assert shown["unwired"] == ""


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"nodes": []}, "edges"),
        (graph([variable("a")], "a>b"), "not there: b"),
        (graph([node("a", "x"), node("b", "x")], "a>b", "b>a"), "circle"),
        (graph([node("o", "outputNode")]), "name of an output"),
    ],
)
def test_a_wrong_graph_is_refused(emulator: Emulator, wrong: dict[str, Any], why: str) -> None:
    """What is no flow graph is refused when it is added, with the reason."""
    with pytest.raises(ValueError, match=why):
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
def test_variables_are_checked(emulator: Emulator, caller: EmulatorClient, body: bytes, status: int) -> None:
    """A missing, misspelt or non-text variable is refused before anything is paid."""
    answer = caller.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", data=body)
    assert answer.status_code == status
    assert emulator.started_count == (status == 200)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"Authorization": "Bearer emulator"}])
def test_only_the_key_opens(caller: EmulatorClient, headers: dict[str, str]) -> None:
    """Without the key in x-api-key the answer is 401."""
    caller.session.headers.clear()
    assert caller.call("GET", f"/api/flows/getFlowInfo/{SAMPLE_FLOW}", headers=headers).status_code == 401
    assert caller.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", headers=headers, json={}).status_code == 401


def test_unknown_flows_are_not_found(caller: EmulatorClient) -> None:
    """A flow that there is not is 404, and so is the name that the prose gives the endpoint."""
    assert caller.call("GET", "/api/flows/getFlowInfo/unknown").json() == {"error": "Flow not found"}
    assert caller.run_chain("unknown").status_code == 404
    assert caller.call("GET", f"/api/flows/get-flow-info/{SAMPLE_FLOW}").status_code == 404


def test_browsers_may_ask(caller: EmulatorClient) -> None:
    """Any origin may send the key from a browser."""
    headers = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key,content-type",
    }
    answer = requests.options(
        f"{caller.emulator.url}/api/flows/run/{SAMPLE_FLOW}", headers=headers, timeout=10
    )
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "x-api-key" in answer.headers["Access-Control-Allow-Headers"]
    shown = caller.call(
        "GET", f"/api/flows/getFlowInfo/{SAMPLE_FLOW}", headers={"Origin": "https://example.org"}
    )
    assert shown.headers["Access-Control-Allow-Origin"] == "*"


def test_runs_do_not_wait_for_each_other(emulator: Emulator, caller: EmulatorClient) -> None:
    """Many runs at once take as long as one."""
    emulator.switches.chain_seconds = 0.4
    began = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: caller.run_chain(), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert time.monotonic() - began < 3
