"""Tests of both transports across a network: redirects, proxies, certificates, and who receives the key.

Each test runs with `requests` and with `aiohttp`. Servers and certificate authority are real.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowServiceError
from airflow_provider_flows.core.http import Request
from airflow_provider_flows.core.retry import follow_redirects
from tests.support.drivers import (
    TOKEN,
    Driver,
    catch_unreachable,
    settings_for,
    single_request,
)
from tests.support.servers import (
    MisbehavingServer,
    StubResponse,
    StubServer,
    forward,
    reset,
    send_and_close,
    unused_url,
)

GET = Request("GET", "/flows")
POST = Request("POST", "/flows", json={"template": "chair"})

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Create a certificate authority that no client trusts."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """Write the authority's certificate into a CA bundle."""
    path = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """Create a server's TLS context with a certificate of that authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def tls_server(tls: ssl.SSLContext) -> Iterator[StubServer]:
    """Serve over TLS."""
    with StubServer(tls=tls) as stub:
        yield stub


class TestRedirects:
    """Only a GET follows a redirect; another host or port gets a request if it is allowed, and no key."""

    def test_allowed_redirect_to_another_port_has_no_key(self, driver: Driver) -> None:
        """Another port is another host: it receives the request if that is allowed, and no key."""
        asked: list[str] = []

        def is_allowed(url: str) -> bool:
            asked.append(url)
            return True

        with (
            StubServer() as other,
            StubServer(lambda _: StubResponse(302, {"Location": f"{other.url}/there"})) as stub,
        ):
            conversation = follow_redirects(replace(GET, allow_url=is_allowed))
            response = driver(settings_for(stub.url), conversation)
        assert (response.is_success, response.is_foreign) == (True, True)
        assert stub.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert [(seen.path, "authorization" in seen.headers) for seen in other.requests] == [
            ("/there", False)
        ]
        assert asked == [f"{other.url}/there"]

    def test_redirect_within_the_host_sends_the_key(self, driver: Driver) -> None:
        """A redirect to another path of the same host is followed with the key."""
        with StubServer(
            lambda seen: (
                StubResponse() if seen.path == "/flows/" else StubResponse(307, {"Location": "/flows/"})
            )
        ) as stub:
            assert driver(settings_for(stub.url), follow_redirects(GET)).is_success
        assert [seen.headers["authorization"] for seen in stub.requests] == [f"Bearer {TOKEN}"] * 2

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_changing_request_is_not_redirected(self, driver: Driver, status: int) -> None:
        """A POST is not sent to the target of a redirect; the redirect is returned as it is."""
        with (
            StubServer() as other,
            StubServer(lambda _: StubResponse(status, {"Location": other.url})) as stub,
        ):
            assert driver(settings_for(stub.url), follow_redirects(POST)).status == status
        assert other.requests == []

    @pytest.mark.parametrize("where", ["http://[", "http://h:99999999/", "file:///etc/hosts", "//[bad"])
    def test_redirect_to_an_invalid_url_is_a_flow_error(self, driver: Driver, where: str) -> None:
        """A redirect to an invalid URL is an error of this provider."""
        with (
            StubServer(lambda _: StubResponse(302, {"Location": where})) as stub,
            pytest.raises(FlowServiceError, match=r"redirects to an invalid URL|nothing was sent there"),
        ):
            driver(settings_for(stub.url), follow_redirects(GET))

    def test_redirects_in_a_circle_end(self, driver: Driver) -> None:
        """A circle of redirects ends with an error that names the connection's host as the suspect."""
        with (
            StubServer(lambda _: StubResponse(302, {"Location": "/flows"})) as stub,
            pytest.raises(FlowMalformed, match="check the host"),
        ):
            driver(settings_for(stub.url), follow_redirects(GET))
        assert len(stub.requests) == 5


class TestProxies:
    """The environment's proxies are used, and NO_PROXY is honoured."""

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_proxy_of_the_environment_is_used(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """A request goes to the proxy, with its absolute URL, and through it to the service."""
        with StubServer() as stub, StubServer(forward) as proxy:
            monkeypatch.setenv(name, proxy.url)
            response = driver(settings_for(stub.url), single_request(POST))
        assert response.headers["x-via"] == "proxy"
        assert [seen.path for seen in proxy.requests] == [f"{stub.url}/flows"]
        assert [seen.body for seen in stub.requests] == [POST.body]

    def test_credentials_of_the_proxy_go_to_the_proxy(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """User and password in the proxy's URL are sent to the proxy only."""
        with StubServer() as stub, StubServer(forward) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:pass%21@"))
            assert driver(settings_for(stub.url), single_request(GET)).is_success
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwYXNzIQ=="
        assert "proxy-authorization" not in stub.requests[0].headers

    def test_no_proxy_is_honoured(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A request to a host in NO_PROXY does not use the proxy."""
        with StubServer() as stub, StubServer(forward) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            assert driver(settings_for(stub.url), single_request(GET)).is_success
        assert (len(stub.requests), proxy.requests) == (1, [])

    def test_request_through_an_unreachable_proxy_never_arrived(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request through an unreachable proxy never arrived."""
        with unused_url() as url, StubServer() as stub:
            monkeypatch.setenv("HTTP_PROXY", url)
            assert not catch_unreachable(driver, settings_for(stub.url), POST).may_have_arrived

    @pytest.mark.parametrize(
        "value",
        ["::::", "http://", "http://proxy:port", "http://[", "http://user:s3cret@:80", "http://h:99999"],
    )
    def test_invalid_proxy_is_named(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        """An address of a proxy that no client can parse is what the message blames, not the host."""
        with StubServer() as stub:
            monkeypatch.setenv("HTTP_PROXY", value)
            error = catch_unreachable(driver, settings_for(stub.url), POST)
        assert not error.may_have_arrived
        assert "is not the address of a proxy. Check the proxy settings of this machine" in str(error)
        assert "s3cret" not in str(error)
        assert "connection's host" not in str(error)

    def test_request_through_a_rejected_tunnel_never_arrived(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request through a proxy that rejects the tunnel never arrived."""
        with StubServer(forward) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            assert not catch_unreachable(driver, settings_for("https://localhost:9"), POST).may_have_arrived
        assert [seen.method for seen in proxy.requests] == ["CONNECT"]
        assert all("authorization" not in seen.headers for seen in proxy.requests)


class TestCertificates:
    """The service's certificate is verified with the CA bundle of the connection or the environment."""

    def test_unknown_authority_is_rejected(self, driver: Driver, tls_server: StubServer) -> None:
        """A certificate of an unknown authority ends the connection before the key is sent."""
        error = catch_unreachable(driver, settings_for(tls_server.url), POST)
        assert not error.may_have_arrived
        assert "certificate" in str(error)
        assert tls_server.requests == []

    def test_bundle_of_the_connection_is_trusted(
        self, driver: Driver, tls_server: StubServer, bundle: str
    ) -> None:
        """A certificate of an authority in the connection's bundle is accepted."""
        assert driver(settings_for(tls_server.url, verify=bundle), single_request(GET)).is_success

    def test_ca_bundle_of_the_connection_takes_precedence(
        self,
        driver: Driver,
        tls_server: StubServer,
        bundle: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The bundle of the connection takes precedence over that of the environment."""
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        assert driver(settings_for(tls_server.url, verify=bundle), single_request(GET)).is_success

    @pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
    def test_verification_can_be_disabled(
        self, driver: Driver, tls_server: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With `verify` off, any certificate is accepted, even if the environment names a bundle."""
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        assert driver(settings_for(tls_server.url, verify=False), single_request(GET)).is_success

    def test_wrong_host_name_is_rejected(self, driver: Driver, tls_server: StubServer, bundle: str) -> None:
        """A trusted certificate for another host name is rejected."""
        url = tls_server.url.replace("localhost", "127.0.0.1")
        assert not catch_unreachable(driver, settings_for(url, verify=bundle), POST).may_have_arrived

    @pytest.mark.parametrize(
        "act", [reset, send_and_close(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")]
    )
    def test_request_broken_after_the_handshake_may_have_arrived(
        self, driver: Driver, tls: ssl.SSLContext, bundle: str, act: object
    ) -> None:
        """If a TLS connection breaks after the request was read, the service may have acted."""
        with MisbehavingServer(act, tls) as server:
            assert catch_unreachable(driver, settings_for(server.url, verify=bundle), POST).may_have_arrived
        assert server.bodies == [POST.body]
