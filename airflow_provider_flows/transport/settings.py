"""Settings of a connection for both transports: host, credentials, timeouts, TLS and URL rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_provider_flows.core.exceptions import FlowUnreachable
from airflow_provider_flows.core.http import Request, is_same_origin
from airflow_provider_flows.core.limits import MIB
from airflow_provider_flows.transport.url_guard import has_unambiguous_host, is_public, resolves_to_public

ACCEPTED_ENCODINGS = "gzip, deflate"  # what the reader of a response decompresses; default of a session
READ_CHUNK_BYTES = 256 * 1024  # a quarter of the calls, and a third less CPU time, than with 64 KiB


@dataclass(frozen=True, slots=True)
class Settings:
    """What both transports need to know about a connection.

    :param base_url: scheme, host, port and perhaps a path prefix, without a slash at its end.
    :param credentials: the headers with the API key. They are sent to the host of `base_url` only, and `repr`
        omits them.
    :param connect_timeout: timeout for establishing a connection, in seconds.
    :param read_timeout: longest time without data from the service, in seconds.
    :param verify: whether to verify the service's certificate, or the path of a CA bundle to verify it with.
    :param max_response_bytes: maximum size of a response that no sink receives.
    :param max_output_bytes: maximum size of the file that a sink receives.
    """

    base_url: str
    credentials: Mapping[str, str] = field(repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    verify: bool | str = True
    max_response_bytes: int = 64 * MIB
    max_output_bytes: int = 4096 * MIB

    @property
    def secrets(self) -> tuple[str, ...]:
        """The API key as it may occur in a response: the header values without their scheme (`Bearer`)."""
        return tuple(value.rpartition(" ")[2] for value in self.credentials.values())

    def url(self, request: Request) -> str:
        """Return the absolute URL of a request, without `Request.query`."""
        return self.base_url + request.path if request.path.startswith("/") else request.path

    def headers(self, request: Request) -> dict[str, str]:
        """Return the headers of a request, with credentials only for the connection's own host."""
        headers = {"Content-Type": "application/json"} if request.json is not None else {}
        if request.sink is not None:  # files are compressed already, or a compressed one hides its size
            headers["Accept-Encoding"] = "identity"
        is_own_host = request.path.startswith("/") or is_same_origin(request.path, self.base_url)
        return {**headers, **(self.credentials if is_own_host else {})}

    def may_redirect_to(self, link: str) -> bool:
        """Return whether a link from a flow's output may be followed, judged by its text only.

        The link must lead to the service's own host, or by https to a public one. The output of a flow is
        untrusted: it must not cause a worker to send requests into its own network.
        """
        link = link.strip()
        return has_unambiguous_host(link) and (is_same_origin(link, self.base_url) or is_public(link))

    def is_allowed_url(self, link: str) -> bool:
        """Return whether a link may be fetched, judged by its text and its host's current addresses."""
        return self.may_redirect_to(link) and (
            is_same_origin(link.strip(), self.base_url) or resolves_to_public(link.strip())
        )

    def unreachable_error(
        self, request: Request, error: BaseException, *, may_have_arrived: bool
    ) -> FlowUnreachable:
        """Return the error of a request that got no response.

        The text of the HTTP library's error is omitted, because it contains the URL, which may be signed.

        :param error: the error of the HTTP library.
        :param may_have_arrived: whether the service may have received the request.
        """
        url = self.url(request)
        host = self.base_url if is_same_origin(url, self.base_url) else "another host"
        doubt = "The service may have acted on it. " if may_have_arrived and request.method != "GET" else ""
        certificates = ", its certificate settings" if url.startswith("https:") else ""
        message = (
            f"{request} got no response from {host} ({type(error).__name__}). "
            f"{doubt}Check the connection's host{certificates} and the network."
        )
        return FlowUnreachable(message, may_have_arrived=may_have_arrived)
