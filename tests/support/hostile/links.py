"""Redirects, and references to a next page, that lead to another origin than the service's own.

A target with `{port}` leads to the hostile server itself in another spelling of its host: nothing of the
package may send a second request there, although the machine is the same.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from itertools import cycle

from tests.support.hostile.server import Act, head, register

TARGETS = {
    "another name of the machine": "http://localhost:{port}/there?sig=c0ffee",
    "that name in capitals": "HTTP://LOCALHOST:{port}/there",
    "a name with a trailing dot": "http://localhost.:{port}/there",
    "an address with a trailing dot": "http://127.0.0.1.:{port}/there",
    "an address without a scheme": "//localhost:{port}/there",
    "another loopback address": "http://127.0.0.2:{port}/there",
    "a short address": "http://127.1:{port}/there",
    "a decimal address": "http://2130706433:{port}/there",
    "a hexadecimal address": "http://0x7f000001:{port}/there",
    "an octal address": "http://0177.0.0.1:{port}/there",
    "the unspecified address": "http://0.0.0.0:{port}/there",
    "zero": "http://0:{port}/there",
    "the IPv6 loopback": "http://[::1]:{port}/there",
    "a mapped IPv6 address": "http://[::ffff:127.0.0.1]:{port}/there",
    "a mapped address in hexadecimal": "http://[::ffff:7f00:1]:{port}/there",
    "an IPv6 address with a zone": "http://[fe80::1%25lo]:{port}/there",
    "a host in full-width characters": "http://\uff11\uff12\uff17\u30020\u30020\u30021:{port}/there",
    "an escaped host": "http://%31%32%37.0.0.1:{port}/there",
    "the own host with a user": "http://u:p@127.0.0.1:{port}/there",
    "the own host as a user": "http://127.0.0.1:{port}@localhost:{port}/there",
    "the own host before a backslash": "http://127.0.0.1:{port}\\@localhost:{port}/there",
    "a host after a backslash": "http://localhost:{port}\\@127.0.0.1:{port}/there",
    "a host with a tab in it": "http://127.0.0.1\t.attacker.example:{port}/there",
    "the own host over TLS": "https://127.0.0.1:{port}/there",
    "another port": "http://127.0.0.1:1/there",
    "the default port": "http://127.0.0.1/there",
    "a metadata service": "http://169.254.169.254/latest/meta-data/",
    "a metadata service over TLS": "https://169.254.169.254/latest/meta-data/",
    "Azure's WireServer": "http://168.63.129.16/machine?comp=goalstate",
    "Oracle's metadata service": "http://192.0.0.192/opc/v2/instance/",
    "a private network": "https://10.0.0.1/admin",
    "a name inside the network": "https://metadata.google.internal/computeMetadata/v1/",
    "a public host": "https://attacker.example/collect?d=c0ffee",
    "an internationalized name": "https://b\u00fccher.attacker.example/collect",
    "a name in Punycode": "https://xn--bcher-kva.attacker.example/collect",
    "a file": "file:///etc/passwd",
    "an FTP server": "ftp://127.0.0.1:{port}/there",
    "a gopher server": "gopher://127.0.0.1:{port}/there",
    "a script": "javascript:alert(1)//there",
    "a data URI": "data:application/json,{{}}//there",
}


def redirect_to(name: str) -> str:
    """Return the name of the behaviour that redirects to a target."""
    return f"a redirect to {name}"


def next_page_at(name: str) -> str:
    """Return the name of the behaviour whose lists have their next page at a target."""
    return f"a next page at {name}"


def target_url(target: str, connection: socket.socket) -> str:
    """Return a target's URL for the server of a connection."""
    return target.format(port=connection.getsockname()[1])


def _create_redirect(target: str, status: int) -> Act:
    def act(connection: socket.socket) -> None:
        location = target_url(target, connection)
        connection.sendall(
            head(status=f"{status} Moved", Location=location, Content_Length="0", Connection="close")
        )

    return act


def _create_next_page(target: str) -> Act:
    def act(connection: socket.socket) -> None:
        rows = [{"flow_id": "6b01", "state": "running", "name": "chair", "template_id": "chair"}]
        page = {"flows": rows, "templates": rows, "next": target_url(target, connection)}
        body = json.dumps(page).encode()
        connection.sendall(head(Content_Length=str(len(body)), Connection="close") + body)

    return act


@register("a redirect with an endless body")
def _send_endless_redirect(connection: socket.socket) -> None:
    connection.sendall(head(status="302 Found", Location="/flows/there"))
    with suppress(OSError):
        while True:
            connection.sendall(bytes(1 << 16))


for (_name, _target), _status in zip(TARGETS.items(), cycle((301, 302, 303, 307, 308)), strict=False):
    register(redirect_to(_name))(_create_redirect(_target, _status))
    register(next_page_at(_name))(_create_next_page(_target))
