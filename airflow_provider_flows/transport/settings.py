"""Settings of a connection for both transports: host, credentials, timeouts, TLS and URL rules."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from airflow_provider_flows import __version__
from airflow_provider_flows.core.exceptions import FlowInputError, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.http import (
    UPGRADE_HINT,
    ForbiddenUrlError,
    Request,
    is_same_origin,
    is_upgrade_to_https,
    to_origin,
)
from airflow_provider_flows.core.limits import MIB, MIN_TRANSFER_BYTES, TRANSFER_WINDOW_SECONDS
from airflow_provider_flows.core.redaction import ErrorTexts
from airflow_provider_flows.transport.network import explain_failure
from airflow_provider_flows.transport.url_guard import (
    is_public,
    matches_host,
    matches_input_host,
    resolves_to_public,
)

CA_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
PEM_CERTIFICATE = re.compile(rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----")
USER_AGENT = f"airflow-provider-flows/{__version__}"
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
    :param picture_hosts: the other hosts from which pictures and files may be fetched, such as
        `pictures.example.com`, or `*.example.com` for all hosts below `example.com`.
    :param input_hosts: the hosts from which the files of inputs may be fetched although they are not public,
        or by plain http: names, addresses and patterns, perhaps with a port.
    :param min_transfer_bytes: the least that a file must move in `transfer_window`, in either direction.
    :param transfer_window: seconds; `read_timeout`, if that is longer.
    :param error_texts: what messages show of the service's texts about errors.
    """

    base_url: str
    credentials: Mapping[str, str] = field(repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    verify: bool | str = True
    max_response_bytes: int = 64 * MIB
    max_output_bytes: int = 4096 * MIB
    picture_hosts: tuple[str, ...] = ()
    input_hosts: tuple[str, ...] = ()
    min_transfer_bytes: int = MIN_TRANSFER_BYTES
    transfer_window: float = TRANSFER_WINDOW_SECONDS
    error_texts: ErrorTexts = field(default=ErrorTexts(), compare=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The API key as it may occur in a response: the header values without their scheme (`Bearer`)."""
        return tuple(value.rpartition(" ")[2] for value in self.credentials.values())

    def url(self, request: Request) -> str:
        """Return the absolute URL of a request, without `Request.query`.

        Both transports call this before each request, so no request passes by it, wherever its URL comes
        from: a redirect, a reference to the next page, or a link in an output.

        :raises FlowServiceError: the URL is not of the connection's own origin, and `Request.allow_url` does
            not allow it. The request must not be sent. The cause is a `ForbiddenUrlError`.
        """
        url = self._to_absolute(request)
        if not self.is_foreign(request) or (request.allow_url is not None and request.allow_url(url)):
            return url
        target = to_origin(url)
        if is_upgrade_to_https(self.base_url, url):
            remedy = UPGRADE_HINT.format(target=target)
        elif request.allow_url is None:
            remedy = (
                "Requests are sent to scheme, host and port of the connection only. If the service has moved "
                "there, set the connection's host to it."
            )
        else:
            remedy = (
                "Files are fetched from the connection's own host, and by https from a public host that the "
                "service is known to use. If you trust the host, add it to picture_hosts in the connection's "
                "extra."
            )
        message = f"{request} leads to {target}, and nothing was sent there. {remedy}"
        raise FlowServiceError(message) from ForbiddenUrlError(target)

    def _to_absolute(self, request: Request) -> str:
        if request.path.startswith("//"):
            return f"{self.base_url.partition(':')[0]}:{request.path}"
        return self.base_url + request.path if request.path.startswith("/") else request.path

    def is_foreign(self, request: Request) -> bool:
        """Return whether a request leads to another origin than the connection's own."""
        is_path = request.path.startswith("/") and not request.path.startswith("//")
        return not is_path and not is_same_origin(self._to_absolute(request), self.base_url)

    def headers(self, request: Request) -> dict[str, str]:
        """Return the headers of a request, with credentials only for the connection's own host."""
        headers = {"User-Agent": USER_AGENT}
        if request.json is not None:
            headers["Content-Type"] = "application/json"
        if request.sink is not None:  # files are compressed already, or a compressed one hides its size
            headers["Accept-Encoding"] = "identity"
        is_anonymous = request.is_anonymous or self.is_foreign(request)
        return headers if is_anonymous else {**self._own_headers(request), **headers}

    def _own_headers(self, request: Request) -> dict[str, str]:
        """Return the headers for the connection's own host only: the request's, and the credentials."""
        names = {name.lower() for name in self.credentials}
        own = {name: value for name, value in request.headers.items() if name.lower() not in names}
        return {**own, **self.credentials}

    def may_redirect_to(self, link: str) -> bool:
        """Return whether a link from a flow's output may be followed, judged by its text only.

        The link must lead to the service's own host, or by https to a public one of `picture_hosts`. The
        output of a flow is untrusted: it must not cause a worker to send requests into its own network, nor
        to a host that the author of a part of a prompt has chosen.
        """
        link = link.strip()
        return is_same_origin(link, self.base_url) or (
            is_public(link) and matches_host(link, self.picture_hosts)
        )

    def is_allowed_url(self, link: str) -> bool:
        """Return whether a link may be fetched, judged by its text and its host's current addresses."""
        return self.may_redirect_to(link) and (
            is_same_origin(link.strip(), self.base_url) or resolves_to_public(link.strip())
        )

    def is_allowed_input_url(self, url: str) -> bool:
        """Return whether the file at a URL in a flow's inputs may be fetched.

        The URL may come from a table: it must not cause a worker to send requests into its own network. So it
        must lead to the service's own host, by https to any public host, or to one of `input_hosts`.
        """
        if is_same_origin(url, self.base_url) or matches_input_host(url, self.input_hosts):
            return True
        return is_public(url) and resolves_to_public(url)

    def unreachable_error(
        self,
        request: Request,
        error: BaseException,
        delay: str | None,
        *,
        may_have_arrived: bool,
        is_connected: bool = False,
        is_proxy: bool = False,
    ) -> FlowUnreachable:
        """Return the error of a request that got no response, or no complete one in time.

        :param error: the error of the HTTP library.
        :param delay: what took too long, if the request's deadline has expired.
        :param may_have_arrived: whether the service may have received the request.
        :param is_connected: whether a connection to the service was established.
        :param is_proxy: whether the proxy of the environment has failed, not the service.
        """
        url = self._to_absolute(request)
        explanation = explain_failure(error, url, is_connected=is_connected, is_proxy=is_proxy)
        host = to_origin(url) if self.is_foreign(request) else self.base_url
        # a wrong scheme or certificate: the doubt that the start protocol has nevertheless would only mislead
        has_doubt = may_have_arrived and request.method != "GET" and not explanation.is_setting
        doubt = "The service may have acted on it. " if has_doubt else ""
        if delay is not None:
            message = f"{request} to {host} {delay} {doubt}".rstrip()
            return FlowUnreachable(message, may_have_arrived=may_have_arrived)
        usable = "usable " if is_connected else ""
        message = (
            f"{request} got no {usable}response from {host}: {explanation.cause}. {doubt}{explanation.advice}"
        )
        is_permanent = explanation.is_setting and not self.is_foreign(request)
        return FlowUnreachable(message, may_have_arrived=may_have_arrived, is_permanent=is_permanent)


def find_ca_bundle(conn_id: str, configured: str | None) -> str | bool:
    """Return the CA bundle of the connection, else of the environment, else True for the default one.

    :param configured: the path in the connection's extra.
    :raises FlowInputError: the bundle does not exist, or is a file without certificates.
    """
    candidates = [
        (f"ca_bundle in the extra of connection {conn_id!r}", configured),
        *((name, os.environ.get(name)) for name in CA_BUNDLE_VARIABLES),
    ]
    where, bundle = next(((where, bundle) for where, bundle in candidates if bundle), ("", None))
    problem = None if bundle is None else _find_bundle_problem(Path(bundle))
    if problem is not None:
        message = f"{where} must be the path of a file with certificates; {bundle} {problem}"
        raise FlowInputError(message)
    return bundle or True


def _find_bundle_problem(path: Path) -> str | None:
    """Return why a CA bundle is unusable, as far as that is cheap to know: TLS would only fail to connect."""
    try:
        if path.is_dir():
            return None
        return None if _has_certificates(path, path.stat().st_mtime_ns) else "has none in PEM format"
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({type(error).__name__})"


@lru_cache(maxsize=32)
def _has_certificates(path: Path, modified_at: int) -> bool:  # noqa: ARG001  # part of the cache's key
    return any(PEM_CERTIFICATE.search(line) for line in path.read_bytes().splitlines())
