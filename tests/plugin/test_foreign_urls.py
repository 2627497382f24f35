"""Tests that the pages of a connection follow a service to no other origin, and show nothing from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fastapi.testclient import TestClient

from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from tests.support.hostile import HostileServer, links
from tests.support.plugin_site import airflow_clients, save_connections

pytestmark = [
    pytest.mark.usefixtures("no_proxy"),
    # raised by Airflow's own model of a connection in its database
    pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated"),
]


@pytest.fixture(scope="module")
def anna(airflow_database: None) -> Iterator[TestClient]:  # noqa: ARG001  # a fixture requests another
    """Yield an administrator's client."""
    with airflow_clients() as clients:
        yield clients["anna"]


@pytest.mark.parametrize("behaviour", [links.redirect_to, links.next_page_at])
def test_pages_of_a_connection_stay_at_its_origin(anna: TestClient, behaviour: object) -> None:
    """The pages of runs and of a flow name the host that the service led to, and nothing is sent there."""
    assert callable(behaviour)
    RESPONSE_CACHE.clear()
    with ExitStack() as stack:
        servers = {
            f"c{number}": stack.enter_context(HostileServer(behaviour(name)))
            for number, name in enumerate(links.TARGETS)
        }
        save_connections(
            {
                conn_id: {"conn_type": "generio", "host": server.url, "password": "key"}
                for conn_id, server in servers.items()
            }
        )
        for conn_id, server in servers.items():
            for path in (conn_id, f"{conn_id}/flow/chair"):
                page = anna.get(f"/flows/connection/{path}").text
                if path == conn_id:
                    assert "nothing was sent there" in page
                assert "c0ffee" not in page
            paths = {line.split(" ")[1].partition("?")[0] for line in server.request_lines}
            assert paths <= {"/flows", "/templates"}
            assert "/flows" in paths
