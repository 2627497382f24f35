"""Tests of files that inputs name by a URL: what is fetched, from which hosts, and what is sent of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import UploadSource
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage import atomic_file
from airflow_provider_flows.storage.inputs import parse_inputs
from tests.support.hostile import HostileServer
from tests.support.hostile.links import TARGETS
from tests.support.servers import StubResponse, StubServer
from tests.support.task_instances import context
from tests.support.tries import start_earlier_run

pytestmark = [pytest.mark.emulator(run_seconds=0, retries=0), pytest.mark.usefixtures("no_proxy")]

FLOW = "model_generate_fromimage"
LOOPBACK = "127.0.0.1, *.localhost"


def picture(kind: str = "PNG", size: tuple[int, int] = (3, 2)) -> bytes:
    """Draw a picture."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1])).save(buffer, kind)
    return buffer.getvalue()


PNG = picture()


def count_open_files() -> int:
    """Return the number of file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def hook_with(extra: dict[str, Any], conn_id: str = "generio_default") -> FlowsHook:
    """Return the hook of a connection to the emulator with this extra."""
    hook = FlowsHook.get_hook(conn_id)
    hook.connection.extra = json.dumps({"retries": 0} | extra)
    return hook


@pytest.fixture
def near_hook(emulator: Emulator) -> FlowsHook:  # noqa: ARG001  # it sets the connection
    """Return a hook whose connection allows files from this machine."""
    return hook_with({"input_hosts": LOOPBACK})


def serve(body: bytes, **headers: str) -> StubServer:
    """Return a server of one file, with headers whose underscores are dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return StubServer(lambda _: StubResponse(200, named, body))


def read(hook: FlowsHook, inputs: Any) -> UploadSource:
    """Parse one input that is a file."""
    (item,) = parse_inputs(inputs, hook=hook)
    assert isinstance(item.data, UploadSource)
    return item.data


# the path, the declared type and the content of a file, and the media type of the input
FILES: dict[str, tuple[str, str, bytes, str]] = {
    "a picture": ("/chair.png", "image/png", PNG, "image/png"),
    "a picture of another kind than its name": ("/chair.jpg", "image/jpeg", PNG, "image/png"),
    "a picture without a name": ("/", "", PNG, "image/png"),
    "a picture of unknown type": ("/download?id=7", "application/octet-stream", PNG, "image/png"),
    "a model by its name": ("/chair.obj", "", b"v 0 0 0\n", "model/obj"),
    "a model by its declared type": ("/7", "model/obj", b"v 0 0 0\n", "model/obj"),
    "a BMP": ("/chair.bmp", "image/bmp", picture("BMP"), "image/png"),
    "an escaped name": ("/My%20Chair.png", "image/png", PNG, "image/png"),
    "a signed URL": ("/chair.png?sig=c0ffee", "image/png", PNG, "image/png"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_at_a_url_is_an_input(near_hook: FlowsHook, name: str) -> None:
    """The file is fetched once, without credentials, and its content is sent each time."""
    path, declared, content, media_type = FILES[name]
    with serve(content, Content_Type=declared) as server:
        source = read(near_hook, {"uri": f"{server.url}{path}"})
        assert source.media_type == media_type
        first, second = b"".join(source.chunks()), b"".join(source.chunks())
        assert first == second
        assert len(first) == source.size
        assert source.digest == hashlib.sha256(first).hexdigest()
        assert name == "a BMP" or first == content
        (request,) = server.requests
    assert {"authorization", "cookie", "x-api-key"}.isdisjoint(request.headers)


def test_several_files_at_urls_share_one_open_file(near_hook: FlowsHook) -> None:
    """Hundreds of URLs are inputs of one run, each with its own content, and use one file descriptor."""
    contents = [picture() for _ in range(40)]
    with StubServer(lambda request: StubResponse(body=contents[int(request.path[1:-4])])) as server:
        before = count_open_files()
        items = parse_inputs([{"uri": f"{server.url}/{n}.png"} for n in range(40)], hook=near_hook)
        assert count_open_files() < before + 10
    assert [b"".join(item.data.chunks()) for item in items] == contents


def test_text_at_a_url_is_a_prompt(near_hook: FlowsHook, emulator: Emulator) -> None:
    """A text is a prompt or a variable, without a byte order mark."""
    del emulator
    chain_hook = hook_with({"input_hosts": LOOPBACK}, "promptchainer_default")
    with serve(b"\xef\xbb\xbfA chair") as server:
        uri = {"uri": f"{server.url}/prompt.txt"}
        (item,) = parse_inputs(uri, hook=near_hook)
        assert item.data == "A chair"
        assert parse_inputs({"color": uri}, hook=chain_hook) == {"color": "A chair"}


# the content at /chair.png, and what the error says
REJECTED: dict[str, tuple[StubResponse, str, bool]] = {
    "nothing there": (StubResponse(404), "responded with HTTP 404. Check the URL", True),
    "not allowed": (StubResponse(403), "responded with HTTP 403. Check the URL", True),
    "a server's error": (StubResponse(500), "responded with HTTP 500. Try again later", False),
    "too many requests": (StubResponse(429), "responded with HTTP 429", False),
    "a redirect to nowhere": (StubResponse(302), "responded with HTTP 302", True),
    "an empty file": (StubResponse(body=b""), "names an empty file", True),
    "a page": (StubResponse(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><p>"), "an HTML page", True),
    "a truncated picture": (StubResponse(body=PNG[:-9]), "that is truncated", True),
    "a text": (StubResponse(body=b"a chair"), "its name says image/png", True),
}


@pytest.mark.parametrize("name", REJECTED)
def test_wrong_file_at_a_url_is_an_error_before_a_run_is_created(
    near_hook: FlowsHook, emulator: Emulator, name: str
) -> None:
    """The error names the input and the URL without its query, and says whether a retry makes sense."""
    response, message, is_permanent = REJECTED[name]
    with StubServer(lambda _: response) as server:
        with pytest.raises(FlowInputError) as caught:
            near_hook.start(FLOW, {"uri": f"{server.url}/chair.png?sig=c0ffee"})
        assert "inputs[0] names a" in str(caught.value)
        assert f"{server.url}/chair.png)" in str(caught.value)
    assert message in str(caught.value)
    assert "c0ffee" not in str(caught.value)
    assert "No flow run was created" in str(caught.value)
    assert caught.value.is_permanent == is_permanent
    assert not emulator.runs


def test_page_without_a_name_is_an_error(near_hook: FlowsHook) -> None:
    """The address of a page in place of that of its picture is an error."""
    with (
        serve(b"<!DOCTYPE html><p>", Content_Type="text/html") as server,
        pytest.raises(FlowInputError, match="whose content is an HTML page"),
    ):
        parse_inputs({"uri": f"{server.url}/chairs/7"}, hook=near_hook)


# the behaviour of the server, what the error says, and whether it is permanent
HOSTILE = {
    "a picture that claims to be larger than any input": ("it is larger than 4294967296 bytes", True),
    "a picture without an end": ("it is larger than 1 MiB", True),
    "a picture that ends before its length": ("closed the connection within the body", False),
    "a picture behind a circle of redirects": ("was redirected more than 5 times", False),
    "a picture of a server that is busy": ("HTTP 503", False),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_server_of_a_file_is_an_error(emulator: Emulator, name: str) -> None:
    """A file without an end, a false size and a circle of redirects end with an error; nothing is created."""
    message, is_permanent = HOSTILE[name]
    hook = hook_with({"input_hosts": LOOPBACK, "max_output_mib": 1 if "end" in name else 8192})
    with HostileServer(name) as server, pytest.raises(FlowInputError, match=message) as caught:
        hook.start(FLOW, {"uri": f"{server.url}/chair.png"})
    assert caught.value.is_permanent == is_permanent
    assert "the connection's host" not in str(caught.value)
    assert not emulator.runs


def test_files_of_one_run_are_bounded_together(near_hook: FlowsHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file has a maximum size."""
    monkeypatch.setattr(atomic_file, "MAX_FETCHED_INPUT_BYTES", len(PNG) + 10)
    with serve(PNG) as server:
        uri = {"uri": f"{server.url}/a.png"}
        parse_inputs([uri], hook=near_hook)
        with pytest.raises(FlowInputError, match=r"inputs\[1\] .*the files from URLs have more than"):
            parse_inputs([uri, uri], hook=near_hook)


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("extra", [{}, {"input_hosts": "files.corp, 10.0.0.9, *.lan, 127.0.0.1:9"}])
@pytest.mark.parametrize("name", TARGETS)
def test_url_and_redirect_lead_to_public_hosts_only(name: str, extra: dict[str, Any]) -> None:
    """Hosts that the connection does not allow get no request, from a URL or from a redirect."""
    with StubServer() as forbidden:
        url = TARGETS[name].format(port=forbidden.port)
        if (
            not url.startswith(("http:", "https:", "HTTP:", "//"))
            or not url.isascii()
            or "attacker.example" in url
        ):
            pytest.skip("no web address, or that of a public host")
        with StubServer(lambda _: StubResponse(302, {"Location": url})) as allowed:
            hook = hook_with({"input_hosts": f"{extra.get('input_hosts', 'x')}, 127.0.0.1:{allowed.port}"})
            for given in (url, f"{allowed.url}/chair.png"):
                with pytest.raises(FlowInputError) as caught:
                    parse_inputs({"uri": given}, hook=hook)
            assert "nothing was sent there" in str(caught.value)
            assert "input_hosts" in str(caught.value)
        assert not forbidden.requests


# fields of the connection, and whether a file of http://localhost and of a name that leads there is fetched
ALLOWED: dict[str, tuple[str, bool]] = {
    "localhost": ("localhost", True),
    "its port": ("localhost:{port}", True),
    "another port": ("localhost:1", False),
    "in capitals": ("LOCALHOST", True),
    "among others": ("files.corp, localhost, *.lan", True),
    "as a list": ("localhost", True),
    "another host": ("local", False),
    "a suffix": ("host", False),
    "a pattern below it": ("*.localhost", False),
    "its address": ("127.0.0.1", False),
}


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("name", ALLOWED)
def test_connection_allows_hosts_of_the_network(name: str) -> None:
    """`input_hosts` allows exactly the hosts and ports that it names, by plain http too."""
    hosts, is_allowed = ALLOWED[name]
    with serve(PNG) as server:
        hook = hook_with({"input_hosts": hosts.format(port=server.port)})
        uri = {"uri": f"http://localhost:{server.port}/chair.png"}
        if is_allowed:
            assert b"".join(read(hook, uri).chunks()) == PNG
        else:
            with pytest.raises(FlowInputError, match="nothing was sent there"):
                parse_inputs(uri, hook=hook)
        assert bool(server.requests) == is_allowed


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    "hosts", ["http://files.corp", "files.corp/x", "a b", "*", "u@h", "h:0", "h:99999", 7]
)
def test_invalid_input_hosts_are_rejected(hosts: Any) -> None:
    """The error names the field and its form."""
    with pytest.raises(FlowInputError, match="input_hosts in the extra of connection"):
        parse_inputs({"uri": "https://h.example/a.png"}, hook=hook_with({"input_hosts": hosts}))


@pytest.mark.parametrize("address", ["10.0.0.7", "127.0.0.1", "169.254.169.254", "fd00::1"])
def test_public_name_of_a_private_address_is_not_fetched(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The name of a public host that leads into the network is rejected; nothing connects there."""
    del emulator
    real, family = socket.getaddrinfo, socket.AF_INET6 if ":" in address else socket.AF_INET

    def resolve(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host == "pictures.example.com":
            return [(family, socket.SOCK_STREAM, 6, "", (address, port))]
        return real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(FlowInputError, match=r"would go to https://pictures\.example\.com"):
        parse_inputs({"uri": "https://pictures.example.com/a.png"}, hook=hook_with({}))


def test_plain_http_to_a_public_host_is_not_fetched(emulator: Emulator) -> None:
    """Plain http is for hosts of `input_hosts` only; the error says so."""
    del emulator
    with pytest.raises(FlowInputError, match="are fetched by https from public hosts"):
        parse_inputs({"uri": "http://example.com/a.png"}, hook=hook_with({}))


def test_own_host_gets_no_credentials_for_an_input(emulator: Emulator) -> None:
    """A URL of the service's own host, which a table may contain, does not read with the account's key."""
    hook = GenerioHook("generio_default")
    with pytest.raises(FlowInputError, match="HTTP 401"):
        parse_inputs({"uri": f"{emulator.url}/flows/7/outputs/8"}, hook=hook)
    (request,) = [one for one in emulator.requests if one.path.endswith("/outputs/8")]
    assert "authorization" not in {name.lower() for name in request.headers}


def test_url_needs_a_hook() -> None:
    """Without a hook nothing is fetched."""
    with pytest.raises(FlowInputError, match="only the hook of a service fetches files"):
        parse_inputs({"uri": "https://example.com/a.png"})


def test_flow_runs_with_a_file_at_a_url(near_hook: FlowsHook, emulator: Emulator) -> None:
    """The service gets the file's content, in both ways to start a run, and for an added input."""
    with serve(PNG) as server:
        uri = {"uri": f"{server.url}/chair.png"}
        started = near_hook.start(FLOW, uri)
        created = near_hook.create(FLOW)
        near_hook.add_input(created.flow_run_id, uri)
    for run in (started, created):
        (item,) = near_hook.list_inputs(run.flow_run_id)
        assert near_hook.get_input(run.flow_run_id, str(item.asset_id)).data == PNG
    assert len(emulator.runs) == 2


def test_resumed_try_needs_no_url_any_more(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A try resumes the run of an earlier one by the file's digest, also when the URL has expired."""
    name = "AIRFLOW_CONN_GENERIO_DEFAULT"
    extra = {"extra": {"input_hosts": "127.0.0.1", "retries": 0}}
    monkeypatch.setenv(name, json.dumps(json.loads(os.environ[name]) | extra))
    responses = [StubResponse(body=PNG), StubResponse(body=PNG), StubResponse(403)]
    with StubServer(lambda _: responses.pop(0)) as server:
        inputs = {"uri": f"{server.url}/chair.png"}
        request = GenerioHook("generio_default").build_request(FLOW, inputs, None, None)
        store = start_earlier_run(request, 3)
        for _ in range(2):
            task = RunFlowOperator(task_id="t", flow=FLOW, inputs=inputs, flows_conn_id="generio_default")
            task.execute(context(store, 2, 3))
    assert emulator.started_count == 1
    assert not responses
