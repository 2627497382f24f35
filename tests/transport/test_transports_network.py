"""Tests of both transports across a network: redirects, proxies, certificates, and whom the key goes to.

Each test runs through `requests` and through `aiohttp`; the servers are real, and trust is in a throw-away authority.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowUnreachable
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
    """Make a certificate authority that nobody trusts."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """Write the authority's certificate into a CA bundle."""
    path = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """Make a server's TLS context with a certificate of that authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def safe_station(tls: ssl.SSLContext) -> Iterator[StubServer]:
    """Serve over TLS."""
    with StubServer(tls=tls) as station:
        yield station


class TestRedirects:
    """A redirect is followed for a GET only, and the key stays at the connection's own host and port."""

    def test_redirect_to_another_port_has_no_key(self, door: Driver) -> None:
        """Another port is another host: it gets the request, and no key."""
        with (
            StubServer() as other,
            StubServer(lambda _: StubResponse(302, {"Location": f"{other.url}/there"})) as station,
        ):
            assert door(settings_for(station.url), follow_redirects(GET)).is_success
        assert station.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert [(seen.path, "authorization" in seen.headers) for seen in other.requests] == [
            ("/there", False)
        ]

    def test_redirect_to_another_host_name_has_no_key(self, door: Driver) -> None:
        """Another name for the same machine is another host."""
        with StubServer(
            lambda seen: (
                StubResponse(302, {"Location": f"http://localhost:{seen.headers['host'].split(':')[1]}/b"})
                if seen.path != "/b"
                else StubResponse()
            )
        ) as station:
            door(settings_for(station.url), follow_redirects(GET))
        assert ["authorization" in seen.headers for seen in station.requests] == [True, False]

    def test_redirect_within_the_host_keeps_the_key(self, door: Driver) -> None:
        """A redirect to another path of the same host is followed with the key."""
        with StubServer(
            lambda seen: (
                StubResponse() if seen.path == "/flows/" else StubResponse(307, {"Location": "/flows/"})
            )
        ) as station:
            assert door(settings_for(station.url), follow_redirects(GET)).is_success
        assert [seen.headers["authorization"] for seen in station.requests] == [f"Bearer {TOKEN}"] * 2

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_changing_request_is_not_sent_on(self, door: Driver, status: int) -> None:
        """A POST that is redirected is sent nowhere else, and comes back as the redirect that it is."""
        with (
            StubServer() as other,
            StubServer(lambda _: StubResponse(status, {"Location": other.url})) as station,
        ):
            assert door(settings_for(station.url), follow_redirects(POST)).status == status
        assert other.requests == []

    @pytest.mark.parametrize("where", ["http://[", "http://h:99999999/", "file:///etc/hosts", "//[bad"])
    def test_redirect_to_no_address_is_an_error_of_ours(self, door: Driver, where: str) -> None:
        """A redirect to something that is no web address is refused."""
        with (
            StubServer(lambda _: StubResponse(302, {"Location": where})) as station,
            pytest.raises((FlowMalformed, FlowUnreachable)),
        ):
            door(settings_for(station.url), follow_redirects(GET))

    def test_redirects_in_a_circle_end(self, door: Driver) -> None:
        """Redirects that lead round and round end with an error that names the connection's host as the suspect."""
        with (
            StubServer(lambda _: StubResponse(302, {"Location": "/flows"})) as station,
            pytest.raises(FlowMalformed, match="check the host"),
        ):
            door(settings_for(station.url), follow_redirects(GET))
        assert len(station.requests) == 5


class TestProxies:
    """The environment's proxies are used, and NO_PROXY is honoured."""

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_proxy_of_the_environment_is_used(
        self, door: Driver, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """A request goes to the proxy, which sees the whole URL, and through it to the service."""
        with StubServer() as station, StubServer(forward) as proxy:
            monkeypatch.setenv(name, proxy.url)
            response = door(settings_for(station.url), single_request(POST))
        assert response.headers["x-via"] == "proxy"
        assert [seen.path for seen in proxy.requests] == [f"{station.url}/flows"]
        assert [seen.body for seen in station.requests] == [POST.body]

    def test_credentials_of_the_proxy_go_to_the_proxy(
        self, door: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """User and password in the proxy's URL are sent to it and to nobody else."""
        with StubServer() as station, StubServer(forward) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:pass%21@"))
            assert door(settings_for(station.url), single_request(GET)).is_success
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwYXNzIQ=="
        assert "proxy-authorization" not in station.requests[0].headers

    def test_no_proxy_is_honoured(self, door: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A host in NO_PROXY is asked directly."""
        with StubServer() as station, StubServer(forward) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            assert door(settings_for(station.url), single_request(GET)).is_success
        assert (len(station.requests), proxy.requests) == (1, [])

    def test_proxy_that_is_away_never_let_it_through(
        self, door: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A proxy that cannot be reached has passed nothing on."""
        with unused_url() as url, StubServer() as station:
            monkeypatch.setenv("HTTP_PROXY", url)
            assert not catch_unreachable(door, settings_for(station.url), POST).may_have_arrived

    def test_proxy_that_refuses_a_tunnel_never_let_it_through(
        self, door: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A proxy that will not tunnel to a TLS host has passed nothing on."""
        with StubServer(forward) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            assert not catch_unreachable(door, settings_for("https://localhost:9"), POST).may_have_arrived
        assert [seen.method for seen in proxy.requests] == ["CONNECT"]
        assert all("authorization" not in seen.headers for seen in proxy.requests)


class TestCertificates:
    """A service's certificate is checked, with the certificates that the connection or the environment names."""

    def test_unknown_authority_is_refused(self, door: Driver, safe_station: StubServer) -> None:
        """A certificate of an authority that nobody trusts ends the talk before the key is sent."""
        error = catch_unreachable(door, settings_for(safe_station.url), POST)
        assert not error.may_have_arrived
        assert "certificate" in str(error)
        assert safe_station.requests == []

    def test_bundle_of_the_connection_is_trusted(
        self, door: Driver, safe_station: StubServer, bundle: str
    ) -> None:
        """With the authority in the connection's bundle the service is asked."""
        assert door(settings_for(safe_station.url, verify=bundle), single_request(GET)).is_success

    def test_connections_bundle_wins_over_the_environments(
        self,
        door: Driver,
        safe_station: StubServer,
        bundle: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A bundle that the connection names is used although the environment names another."""
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        assert door(settings_for(safe_station.url, verify=bundle), single_request(GET)).is_success

    @pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
    def test_check_can_be_switched_off(
        self, door: Driver, safe_station: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With `verify` off any certificate will do, also where the environment names a bundle."""
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        assert door(settings_for(safe_station.url, verify=False), single_request(GET)).is_success

    def test_wrong_host_name_is_refused(self, door: Driver, safe_station: StubServer, bundle: str) -> None:
        """A trusted certificate for another name is refused."""
        url = safe_station.url.replace("localhost", "127.0.0.1")
        assert not catch_unreachable(door, settings_for(url, verify=bundle), POST).may_have_arrived

    @pytest.mark.parametrize(
        "act", [reset, send_and_close(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")]
    )
    def test_break_after_the_handshake_may_have_arrived(
        self, door: Driver, tls: ssl.SSLContext, bundle: str, act: object
    ) -> None:
        """A TLS connection that breaks once the request was read leaves the doubt whether the service acted."""
        with MisbehavingServer(act, tls) as rude:  # type: ignore[arg-type]
            assert catch_unreachable(door, settings_for(rude.url, verify=bundle), POST).may_have_arrived
        assert rude.bodies == [POST.body]
