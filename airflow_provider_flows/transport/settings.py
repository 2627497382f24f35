"""Where and how to send: host, credentials, timeouts, TLS, and the bounds on an answer.

It does not read Airflow connections (connection.py does) and sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowUnreachable
from airflow_provider_flows.core.http import Request, Response, is_same_origin
from airflow_provider_flows.transport.url_guard import has_unambiguous_host, is_public, resolves_to_public

READ_CHUNK_BYTES = 256 * 1024  # a quarter of the calls, and a third less CPU, than with 64 KiB


@dataclass(frozen=True, slots=True)
class Settings:
    """What both transports need to know.

    :param base_url: scheme, host, port and perhaps a path prefix, without a slash at the end.
    :param credentials: the headers with the key; sent to `base_url`'s own host only, and never shown.
    :param connect_timeout: seconds until a connection must stand.
    :param read_timeout: seconds that the service may be silent.
    :param verify: whether the service's certificate is checked, or the path of a CA bundle to check it with.
    :param max_answer_bytes: the largest answer that is not a file.
    """

    base_url: str
    credentials: Mapping[str, str] = field(repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    verify: bool | str = True
    max_response_bytes: int = 64 * 1024 * 1024

    def url(self, request: Request) -> str:
        """Give the absolute URL of a request, without its query."""
        return self.base_url + request.path if request.path.startswith("/") else request.path

    def headers(self, request: Request) -> dict[str, str]:
        """Give the headers of a request: the credentials only where the host is the connection's own."""
        headers = {"Content-Type": "application/json"} if request.json is not None else {}
        own = request.path.startswith("/") or is_same_origin(request.path, self.base_url)
        return {**headers, **(self.credentials if own else {})}

    def raise_if_too_large(self, request: Request, size: int) -> None:
        """Refuse an answer that has grown too large.

        :raises FlowMalformed: more than `max_answer_bytes`.
        """
        if size > self.max_response_bytes:
            message = (
                f"The answer to {request} is larger than {self.max_response_bytes} bytes. If that is right, raise "
                "max_response_mib in the connection's extra."
            )
            raise FlowMalformed(message)

    def to_response_head(self, status: int, headers: Iterable[tuple[str, str]]) -> Response:
        """Make the response, as far as its head tells; one that repeats the key must not bring it into an error's text."""
        secrets = tuple(value.rpartition(" ")[2] for value in self.credentials.values())
        return Response(status, {name.lower(): value for name, value in headers}, secrets=secrets)

    def may_redirect_to(self, link: str) -> bool:
        """Whether a flow's link may be fetched, by its text: on the service's own host, or by https from a public one.

        What a flow writes is untrusted: it must not make a worker fetch what lies inside its network.
        """
        link = link.strip()
        return has_unambiguous_host(link) and (is_same_origin(link, self.base_url) or is_public(link))

    def is_allowed_url(self, link: str) -> bool:
        """Whether such a link may be fetched also by the addresses that its host has now."""
        return self.may_redirect_to(link) and (
            is_same_origin(link.strip(), self.base_url) or resolves_to_public(link.strip())
        )

    def unreachable_error(
        self, request: Request, error: BaseException, *, may_have_arrived: bool
    ) -> FlowUnreachable:
        """Word what kept a request from being answered; never the error's own text with its URL, which may be signed."""
        doubt = "The service may have acted on it. " if may_have_arrived and request.method != "GET" else ""
        message = (
            f"{request} got no answer from {self.base_url if is_same_origin(self.url(request), self.base_url) else 'another host'}"
            f" ({type(error).__name__}). {doubt}Check the connection's host"
            f"{', its certificate settings' if self.url(request).startswith('https:') else ''} and the network."
        )
        return FlowUnreachable(message, may_have_arrived=may_have_arrived)
