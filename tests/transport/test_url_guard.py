"""Tests of where links and redirects may lead a worker, and of the masking of their signatures.

The servers are real and local. Name resolution is replaced, so that no test sends DNS queries.
"""

from __future__ import annotations

import io
import json
import socket
import ssl
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import trustme
from airflow.sdk import Connection
from airflow.sdk.log import redact
from PIL import Image

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowInvalid,
    FlowMalformed,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowServiceError,
)
from airflow_provider_flows.core.http import Request, is_same_origin
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.redaction import find_signatures
from airflow_provider_flows.hooks import PromptChainerHook
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.transport.settings import Settings
from airflow_provider_flows.transport.url_guard import (
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    is_public,
    resolves_to_public,
)
from tests.support.downloads import (
    ActionSequence,
    data_uri_body,
    fetch_or_raise,
    glb,
    hook_to,
    list_files,
    send_body,
)
from tests.support.servers import MisbehavingServer, ReceivedRequest, StubResponse, StubServer, send_and_close

OWN = Settings(
    "http://127.0.0.1:8084/prefix",
    {"x-api-key": "k"},
    picture_hosts=("store.example.com", "my_bucket.s3.amazonaws.com", "*.pictures.example"),
)

pytestmark = pytest.mark.usefixtures("no_proxy")


def png_image() -> bytes:
    """Return a small image."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = png_image()


def promptchainer_hook(url: str, **extra: Any) -> PromptChainerHook:
    """Return a hook for a service, without looking up a connection."""
    hook = PromptChainerHook("own")
    hook._connection = Connection(
        conn_id="own", conn_type="promptchainer", host=url, password="k", extra=json.dumps(extra)
    )
    return hook


@pytest.mark.parametrize(
    "link",
    [
        "https://store.example.com/a.png?sig=x",
        "https://STORE.example.com:8443/a.png",
        "https://my_bucket.s3.amazonaws.com./a.png",
        "https://a.pictures.example/a.png",
        "https://a.b.Pictures.Example./a.png",
        "http://127.0.0.1:8084/a.png",
        " http://127.0.0.1:8084/prefix/a.png\n",
    ],
)
def test_links_to_known_hosts_may_be_followed(link: str) -> None:
    """Known hosts are allowed by https, and the service's own host as it is."""
    assert OWN.may_redirect_to(link)


@pytest.mark.parametrize(
    "link",
    [
        "https://attacker.example/p.png?d=secret",
        "https://store.example.com.attacker.example/a.png",
        "https://evil-store.example.com/a.png",
        "https://a.store.example.com/a.png",
        "https://pictures.example/a.png",
        "https://evilpictures.example/a.png",
        "https://a.pictures.example.attacker.example/a.png",
        "https://attacker.example/a.pictures.example",
        "https://attacker.example#a.pictures.example",
        "https://attacker.example?.pictures.example",
        "http://store.example.com/a.png",
        "ftp://store.example.com/a.png",
        "https://u@store.example.com/a.png",
        "https://store.example.com\\.attacker.example/a.png",
        "https://store.example.com%2eattacker.example/a.png",
        "https://8.8.8.8/a.png",
        "https://[2606:4700:4700::1111]/a.png",
        "https://anybody.blob.core.windows.net/a.png?sig=x",
    ],
)
def test_links_to_unknown_hosts_may_not_be_followed(link: str) -> None:
    """A host that is neither the service's own nor known gets no request, however its name is spelled."""
    assert not OWN.may_redirect_to(link)


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700:4700::1111]", "[64:ff9b::808:808]", "a.example"])
def test_public_host_is_recognized(host: str) -> None:
    """Public addresses and names are public by https, also an IPv4 address behind NAT64."""
    assert is_public(f"https://{host}/a.png")
    assert not is_public(f"http://{host}/a.png")


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "localhost", "localhost.", "LOCALHOST", "a.localhost", "intranet", "intranet."),
        *("flows-db", "metadata.google.internal", "metadata.google.internal.", "printer.local"),
        *("x.default.svc", "x.svc.cluster.local", "router.lan", "db.corp", "x.home.arpa"),
        *("127.1", "2130706433", "0x7f.0.0.1", "0x7f000001", "127.0.0.0x1", "10.1.2.3."),
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "010.0.0.1"),
        *("0.0.0.1", "224.0.0.1", "255.255.255.255"),
        *("[::1]", "[::]", "[fe80::1]", "[fec0::1]", "[fd00::1]", "[ff02::1]"),
        *("[::ffff:10.0.0.1]", "[::ffff:7f00:1]", "[::10.0.0.1]", "[2001:0:a00:1::]"),
        *("[64:ff9b::a00:1]", "[64:ff9b:1::a00:1]", "[2002:a00:1::]", "[2002:7f00:1::1]"),
        *("user:pw@example.com", "user@example.com", "example.com\\@10.0.0.1"),
        *("10.0.0.1\\.example.com", "example.com:99x"),
        *("127。0。0。1", "①②⑦.0.0.1", "ex%61mple.com", "[fe80::1%25eth0]", "[::1", "256.1.1.1"),
        *("127.0.0.1:8085", "127.0.0.1:8084@example.com", "127.0.0.1:8084\\@example.com", "u@127.0.0.1:8084"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_links_into_the_private_network_may_not_be_followed(host: str, scheme: str) -> None:
    """A host that is not public, or that a library may read as one, is rejected in every spelling."""
    assert not OWN.may_redirect_to(f"{scheme}://{host}/a.png")
    assert not is_public(f"{scheme}://{host}/a.png")


@pytest.mark.parametrize("block", [*SPECIAL_IPV4, *SPECIAL_IPV6], ids=str)
def test_no_special_address_is_public(block: IPv4Network | IPv6Network) -> None:
    """The first and the last address of each special block are not public on any Python, in any form."""
    for address in (block[0], block[-1], block[block.num_addresses // 2]):
        assert_not_public(address)
        if isinstance(address, IPv4Address):
            for prefix in ("::ffff:", "64:ff9b::", "::", "::ffff:0:", "64:ff9b:1::", "2002:", "2001:0:"):
                tail = f"{int(address) >> 16:x}:{int(address) & 0xFFFF:x}"
                assert_not_public(ip_address(f"{prefix}{tail}{'::' if prefix.startswith('200') else ''}"))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104  # nothing listens on it
        # cloud metadata and control planes
        *("169.254.169.254", "169.254.170.2", "169.254.0.23", "168.63.129.16", "192.0.0.192"),
        *("100.100.100.200", "fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe"),
        # special addresses that are reachable, or public by the lists of some Python versions
        *("192.0.0.8", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.171", "192.88.99.1", "192.88.99.2"),
        *("192.31.196.1", "192.52.193.1", "192.175.48.6", "198.18.0.1", "198.19.255.255", "203.0.113.7"),
        *("5f00::1", "5f00:ffff::", "3fff::1", "3fff:fff:ffff::", "3ffe::1", "100::1", "100:0:0:1::1"),
        *("2001::1", "2001:1::1", "2001:1::2", "2001:1::3", "2001:2::1", "2001:3::1", "2001:4:112::1"),
        *("2001:5::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:1ff:ffff::", "2001:db8::1"),
        *("2620:4f:8000::1", "::", "::1", "::8.8.8.8", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8"),
        *("64:ff9b::10.0.0.1", "64:ff9b::a83f:8110", "64:ff9b:1::808:808", "2002:808:808::1", "fec0::1"),
        *("4000::1", "8000::1", "e000::1", "fc00::1", "fe80::1", "febf::1", "ff02::1", "ff0e::1"),
        *("0.1.2.3", "100.64.0.1", "100.127.255.255", "172.31.255.255", "224.0.0.1"),
        *("239.255.255.250", "240.0.0.1", "255.255.255.255"),
    ],
)
def test_special_address_is_not_public(address: str) -> None:
    """Addresses that lead into a network, or to its provider's own services, are not public."""
    assert_not_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *(
            "1.1.1.1",
            "8.8.8.8",
            "20.150.90.4",
            "52.239.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "168.63.129.15",
        ),
        *("168.63.129.17", "172.15.255.255", "172.32.0.1", "191.255.255.255", "192.0.1.1", "192.88.98.1"),
        *("192.88.100.1", "198.17.255.255", "198.20.0.1", "223.255.255.255"),
        *("2001:200::1", "2001:4860:4860::8888", "2003::1", "2600:1f18::1", "2606:4700::1111", "2a00::1"),
        *("3ffd::1", "3fff:1000::1", "64:ff9b::8.8.8.8"),
    ],
)
def test_address_next_to_a_special_one_is_public(address: str) -> None:
    """No more than the special blocks is refused: their neighbours are public."""
    literal = f"[{address}]" if ":" in address else address
    assert is_public(f"https://{literal}/a.png")
    assert resolves_to_public("https://store.example.com/a.png", resolving_to(address))


def assert_not_public(address: IPv4Address | IPv6Address) -> None:
    """Assert that an address is public neither in a URL nor as that of a name."""
    literal = f"[{address}]" if address.version == 6 else str(address)
    assert not is_public(f"https://{literal}/a.png")
    assert not resolves_to_public("https://store.example.com/a.png", resolving_to(str(address)))


def resolving_to(*addresses: str) -> Any:
    """Return a resolver that finds these addresses for every name."""
    return lambda _host, port, **_: [(None, None, None, "", (address, port)) for address in addresses]


@pytest.mark.parametrize("host", ["evil.example\\@127.0.0.1:8084", "u@127.0.0.1:8084", "127.0.0.1:8085"])
def test_key_is_not_sent_to_an_ambiguous_host(host: str) -> None:
    """A URL whose host is ambiguous is not of the service's own origin."""
    assert not is_same_origin(f"http://{host}/a", OWN.base_url)
    assert not OWN.credentials.keys() & OWN.headers(Request("GET", f"http://{host}/a")).keys()
    assert is_same_origin("http://127.0.0.1:8084/a@b\\c", OWN.base_url)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["93.184.215.14"], True),
        (["93.184.215.14", "10.0.0.1"], False),
        (["::ffff:10.0.0.1"], False),
        (["fe80::1%eth0"], False),
        (["127.0.0.1"], False),
        ([], True),
    ],
)
def test_host_name_of_a_private_address_is_not_public(addresses: list[str], expected: bool) -> None:
    """A public name with an internal address is rejected; one that cannot be resolved is left to a proxy."""

    def resolve(host: str, port: int, **_: Any) -> Sequence[Sequence[Any]]:
        assert (host, port) == ("store.example.com", 8443)
        if not addresses:
            raise OSError(host)
        return [(None, None, None, "", (address, port)) for address in addresses]

    assert resolves_to_public("https://store.example.com:8443/a.png", resolve) is expected


@pytest.mark.parametrize("first", ["https://store.example.com/a.png", "/redirected.png"])
def test_link_to_a_name_of_a_private_address_is_not_fetched(
    monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Neither a link nor a redirect leads to a name with an internal address; nothing connects there."""
    looked_up, real = [], socket.getaddrinfo

    def resolve(host: str, port: int, *rest: Any, **more: Any) -> Any:
        looked_up.append(host)
        return real("127.0.0.1" if host == "store.example.com" else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with StubServer(lambda _: StubResponse(302, {"Location": "https://store.example.com/a.png"})) as stub:
        buffer = MemoryBuffer()
        hook = promptchainer_hook(stub.url, picture_hosts="store.example.com")
        assert hook.save_linked_image(urljoin(stub.url, first), buffer) is None
        assert len(stub.requests) == first.startswith("/")
    assert looked_up.count("store.example.com") == 1


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_link_is_not_redirected_into_the_network(far: bool, steps: int) -> None:
    """A link on the service's own host may redirect there, but nowhere else inside, at no step."""
    with StubServer(lambda _: StubResponse(body=PNG)) as inside:

        def reply(seen: ReceivedRequest) -> StubResponse:
            step = int(seen.path[1:2])
            if step < steps:
                return StubResponse(302, {"Location": f"/{step + 1}"})
            return StubResponse(302, {"Location": f"{inside.url}/secret"}) if far else StubResponse(body=PNG)

        with StubServer(reply) as stub:
            buffer = MemoryBuffer()
            assert promptchainer_hook(stub.url).save_linked_image(f"{stub.url}/0.png?sig=x", buffer) == (
                None if far else "image/png"
            )
            assert len(stub.requests) == steps + 1
        assert inside.requests == []
    assert bytes(buffer.data) == (b"" if far else PNG)


@pytest.mark.parametrize("far", [True, False])
def test_output_is_not_redirected_into_the_network(far: bool) -> None:
    """A download may be redirected within the service, but not to another port; it is not retried."""
    content = glb(500)
    with StubServer(lambda _: StubResponse(body=content)) as inside:

        def reply(seen: ReceivedRequest) -> StubResponse:
            if seen.path == "/file":
                return StubResponse(body=content)
            return StubResponse(302, {"Location": f"{inside.url}/file" if far else "/file"})

        with StubServer(reply) as stub:
            if far:
                with pytest.raises(
                    FlowServiceError, match=r"nothing was sent there.*picture_hosts"
                ) as caught:
                    hook_to(stub.url).save_output("r", "a", MemoryBuffer())
                assert not isinstance(caught.value, FlowMalformed)
                assert len(stub.requests) == 1
            else:
                assert hook_to(stub.url).download_output("r", "a").data == content
        assert inside.requests == []


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """Serve as `store.example.com` by https; its name has a public address for whoever checks it."""
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host != "store.example.com":
            return real(host, port, *rest, **more)
        return real("127.0.0.1", port, *rest) if rest else resolving_to("93.184.215.14")(host, port)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("store.example.com").configure_cert(context)
    with StubServer(lambda _: StubResponse(), tls=context) as server:
        yield server


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("status", [200, 301, 400, 401, 402, 403, 404, 409, 429, 500, 503])
@pytest.mark.parametrize("is_picture", [False, True])
def test_text_of_another_host_is_in_no_message(store: StubServer, status: int, is_picture: bool) -> None:
    """An error of an allowed host names its status, not its text, and blames no key or quota."""
    body = b'{"detail": "quota exceeded, says text-of-another-host"}'
    store._reply = lambda _: StubResponse(status, {"Content-Type": "text/html"}, body)
    link = f"https://store.example.com:{store.port}/file.png?sig=c0ffee-signature"
    with StubServer(lambda _: StubResponse(302, {"Location": link})) as stub:
        extra: dict[str, Any] = {"picture_hosts": "store.example.com", "verify": False, "retries": 0}
        hook = (promptchainer_hook if is_picture else hook_to)(stub.url, **extra)
        if is_picture and status in {200, 301}:
            assert hook.save_linked_image(f"{stub.url}/a.png", MemoryBuffer()) is None
        else:
            save = hook.save_linked_image if is_picture else partial(hook.save_output, "r")
            with pytest.raises(FlowServiceError, match=f"HTTP {status}") as caught:
                save(f"{stub.url}/a.png", MemoryBuffer())
            assert not isinstance(caught.value, (FlowAuthError, FlowQuotaExceeded))
            assert "text-of-another-host" not in str(caught.value)
            assert "c0ffee" not in str(caught.value)
    assert store.requests
    assert all({"authorization", "x-api-key"}.isdisjoint(seen.headers) for seen in store.requests)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_file_of_a_listed_host_is_fetched_without_the_key(store: StubServer) -> None:
    """A download may be redirected to a host of `picture_hosts`, which gets no key; without it to none."""
    content = glb(500)
    store._reply = lambda _: StubResponse(body=content)
    link = f"https://store.example.com:{store.port}/file?sig=c0ffee-signature"
    with StubServer(lambda _: StubResponse(302, {"Location": link})) as stub:
        hook = hook_to(stub.url, picture_hosts="*.example.com", verify=False)
        assert hook.download_output("r", "a").data == content
        assert ["authorization" in seen.headers for seen in store.requests] == [False]
        with pytest.raises(FlowServiceError, match="picture_hosts in the connection's extra"):
            hook_to(stub.url, verify=False).download_output("r", "a")
    assert len(store.requests) == 1


INJECTED = {
    "a picture": "https://attacker.example/p.png?d=c0ffee",
    "a signed link": "https://attacker.example/p?sig=c0ffeec0ffeec0ffee&rsct=image/png",
    "another store at Azure": "https://attacker.blob.core.windows.net/p?d=c0ffee",
    "the known host as a label": "https://oaidalleapiprodscus.blob.core.windows.net.attacker.example/p.png",
    "the known host as a user": "https://oaidalleapiprodscus.blob.core.windows.net@attacker.example/p.png",
    "no TLS": "http://oaidalleapiprodscus.blob.core.windows.net/p.png",
    "a public address": "https://93.184.215.14/p.png",
    "a metadata service": "http://169.254.169.254/p.png",
    "the known host with an internal address": "https://oaidalleapiprodscus.blob.core.windows.net/p.png?sig=x",
}


@pytest.mark.parametrize("name", INJECTED)
def test_injected_link_is_not_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A link that a prompt has injected gets no request: it remains a link, and a warning names the field."""
    looked_up, real = set[str](), socket.getaddrinfo

    def resolve(host: str, port: int, *rest: Any, **more: Any) -> Any:
        looked_up.add(host)
        return real("127.0.0.1", port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    rows = [{"name": "Slogan", "type": "output", "output": INJECTED[name]}]
    with StubServer(lambda _: StubResponse(body=json.dumps(rows).encode())) as stub:
        hook = promptchainer_hook(stub.url)
        run = hook.start("flow", {}, validate=False)
        fetched = fetch_or_raise(hook, run, OutputOptions(str(tmp_path)))
        assert len(stub.requests) == 1
    (output,) = fetched.outputs
    assert (output.value, output.uri, output.status) == (INJECTED[name], None, "ready")
    assert list_files(tmp_path) == []
    assert looked_up <= {"127.0.0.1", *({urlsplit(INJECTED[name]).hostname} if "internal" in name else ())}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("picture_hosts" in line and "://" in line for line in warnings)
    assert "c0ffee" not in "".join(warnings)


def test_signatures_are_found_in_every_form() -> None:
    """Only the values of signature parameters are secret, and only if they are as long as a signature."""
    url = "https://h/a.png?say=AAAAAAAAAAAAAAAAAAAAAAAA&sig=abc%2bdefghijklmnop%3D&X-Amz-Signature=0123456789abcdef&Signature=short#sig=fragmentfragmentfragment"
    assert find_signatures(url) == {
        "abc%2bdefghijklmnop%3D",
        "abc+defghijklmnop=",
        "abc%2Bdefghijklmnop%3D",
        "0123456789abcdef",
    }
    assert find_signatures("https://h/a.png") == set()


def test_signature_is_masked_even_if_the_link_is_not_followed() -> None:
    """The signature is masked in Airflow's log for every link; other parts of the query are not."""
    signature, word = uuid.uuid4().hex, uuid.uuid4().hex
    assert (
        promptchainer_hook("https://api.example").save_linked_image(
            f"https://10.0.0.1/a.png?word={word}&sig={signature}", MemoryBuffer()
        )
        is None
    )
    assert redact(f"{word} {signature}") == f"{word} ***"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_expired_link_is_reported_for_every_store(status: int) -> None:
    """The error states that a link has expired, for every status that stores use, without the signature."""
    body = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    with StubServer(lambda _: StubResponse(status, body=body)) as stub:
        with pytest.raises(FlowNotFound, match=r"not valid any more.*Run the flow again") as caught:
            promptchainer_hook(stub.url).save_linked_image(f"{stub.url}/a.png?sig=secret", MemoryBuffer())
        assert "secret" not in str(caught.value)
    with (
        StubServer(lambda _: StubResponse(400, body=b"<Code>InvalidArgument</Code>")) as stub,
        pytest.raises(FlowInvalid),
    ):
        promptchainer_hook(stub.url).save_linked_image(f"{stub.url}/a.png", MemoryBuffer())


def test_truncated_linked_picture_is_downloaded_again() -> None:
    """An image without its end is rejected; the next one is accepted if it is complete."""
    acts = ActionSequence(send_and_close(b"HTTP/1.1 200 OK\r\n\r\n" + PNG[:-6]), send_body(PNG))
    with MisbehavingServer(acts) as server:
        buffer = MemoryBuffer()
        assert promptchainer_hook(server.url).save_linked_image(f"{server.url}/a.png", buffer) == "image/png"
    assert (acts.calls, bytes(buffer.data)) == (2, PNG)


def test_response_without_a_length_is_not_a_complete_file() -> None:
    """A raw file whose format does not show its end is accepted only with a Content-Length."""
    gif = b"GIF89a" + bytes(100)
    acts = ActionSequence(send_and_close(b"HTTP/1.1 200 OK\r\n\r\n" + gif[:50]), send_body(gif))
    with MisbehavingServer(acts) as server:
        assert hook_to(server.url, retries=0).download_output("r", "a").data == gif
    assert acts.calls == 2


def test_endless_model_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A service that sends data without end after a model's end is disconnected, each time."""
    blocks, size = list[int](), 1 << 20

    def endless(connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + glb(20))
        blocks.append(0)
        for _ in range(200):
            connection.sendall(bytes(size))
            blocks[-1] += 1

    with MisbehavingServer(endless) as server, (tmp_path / "file").open("wb") as file:

        class Disk(MemoryBuffer):
            """A target on a disk."""

            def write(self, data: bytes) -> None:
                """Write."""
                file.write(data)

        with pytest.raises(FlowMalformed, match="longer than its header says"):
            hook_to(server.url, retries=0).save_output("r", "a", Disk())
    assert max(blocks) < 100
    assert (tmp_path / "file").stat().st_size <= len(blocks) * 66 * size


@pytest.mark.parametrize(("listed", "is_accepted"), [("text/plain", True), (None, False)])
def test_text_is_an_output_only_if_listed(listed: str | None, is_accepted: bool) -> None:
    """An error may look like a text output: text is accepted only if it is listed as such, or for inputs."""
    with StubServer(lambda _: StubResponse(body=b'{"data": "try again later"}')) as stub:
        hook, buffer = hook_to(stub.url, retries=0), MemoryBuffer()
        if is_accepted:
            assert hook.save_output("r", "a", buffer, media_type=listed) == listed
            assert bytes(buffer.data) == b"try again later"
        else:
            with pytest.raises(FlowMalformed, match="a text"):
                hook.save_output("r", "a", buffer, media_type=listed)
        assert hook.get_input("r", "a").data == b"try again later"


def test_output_with_success_false_is_an_error() -> None:
    """A response with `success: false` is an error, even if it contains data."""
    rejected = data_uri_body(glb(100))[:-1] + b', "success": false}'
    acts = ActionSequence(send_body(rejected), send_body(data_uri_body(glb(200))))
    with MisbehavingServer(acts) as server:
        assert hook_to(server.url, retries=0).download_output("r", "a").data == glb(200)
