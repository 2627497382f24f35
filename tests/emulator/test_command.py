"""The command `python -m airflow_provider_flows.emulator`, and the pytest fixture, as users have them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from airflow_provider_flows.cli.command import emulator as run_cli_command
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.emulator.__main__ import main
from tests.emulator.client import SAMPLE_FLOW

COMMAND = [sys.executable, "-m", "airflow_provider_flows.emulator"]
KEY = "it's $k-1"  # with characters that a shell must not interpret
CONNECTIONS = {"FLOWS": "generio", "GENERIO": "generio", "PROMPTCHAINER": "promptchainer"}
Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Yield a function that starts the command; processes that it started are killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen([*COMMAND, "--port", "0", *arguments], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, "".join(process.stdout.readline() for _ in range(1 + len(CONNECTIONS)))

    yield run
    for process in started:
        process.kill()
        process.communicate()


def paste(lines: str) -> dict[str, str]:
    """Return the variables that a shell has after the lines of its input that begin with `export`."""
    commands = [line for line in lines.splitlines() if line.startswith("export ")]
    script = "\n".join([*commands, "env -0"])
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, env={})
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry.startswith("AIRFLOW_CONN_"))


def parse_url(line: str) -> str:
    """Return the URL in the lines that the command printed."""
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    return found[0]


def test_startup_prints_url_and_connections(start: Start, tmp_path: Path) -> None:
    """The command prints its URL and one connection a line, ready to paste, and serves with its arguments."""
    graph = tmp_path / "mine.json"
    graph.write_text(json.dumps({"nodes": [], "edges": []}))
    arguments = [
        "--key",
        "it's $k-1",
        "--run-seconds",
        "0.2",
        "--graph",
        str(graph),
        "--switch",
        "download=raw",
    ]
    process, lines = start(*arguments, "--switch", "auth_failure=403", "--switch", "bmp=accept")
    url = parse_url(lines)
    assert "Generio and PromptChainer" in lines
    assert {name: json.loads(value) for name, value in paste(lines).items()} == {
        f"AIRFLOW_CONN_{name}_DEFAULT": {"conn_type": kind, "host": url, "password": KEY}
        for name, kind in CONNECTIONS.items()
    }
    assert requests.get(url + "/flows", timeout=10).status_code == 403
    for flow_id in ("mine", SAMPLE_FLOW):
        response = requests.get(
            f"{url}/api/flows/getFlowInfo/{flow_id}", headers={"x-api-key": KEY}, timeout=10
        )
        assert response.status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0


def test_interrupt_ends_cleanly(start: Start) -> None:
    """Ctrl-C ends the command with exit code 0."""
    process, _ = start()
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0


def test_it_serves_although_nobody_reads_its_output() -> None:
    """With a reader that has stopped (`| head`) the command still serves, and ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*COMMAND, "--port", str(port)]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        session = requests.Session()
        session.mount("http://", HTTPAdapter(max_retries=Retry(connect=12, backoff_factor=0.1)))
        assert session.get(f"http://127.0.0.1:{port}/_emulator/health", timeout=10).ok
        process.send_signal(signal.SIGTERM)
        assert (process.communicate(timeout=30)[1], process.returncode) == ("", 0)


def test_a_port_in_use_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use ends the command with exit code 1 and a message with a remedy."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert re.fullmatch(
        rf"Cannot listen at 127\.0\.0\.1:{port}: .*Choose another port.*\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"), [("nonsense=1", "no switch 'nonsense'"), ("download=zip", "cannot be 'zip'")]
)
def test_invalid_switches_are_reported(capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    """An unknown switch or value is rejected with a message that lists the valid ones."""
    with pytest.raises(SystemExit):
        main(["--switch", text])
    assert message in capsys.readouterr().err


def test_invalid_graphs_are_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file that is not a flow graph or does not exist ends the command with an error message."""
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    assert main(["--port", "0", "--graph", str(wrong)]) == 1
    assert "Not a flow graph" in capsys.readouterr().err
    assert main(["--port", "0", "--graph", str(tmp_path / "absent.json")]) == 1
    assert "absent.json" in capsys.readouterr().err


USER_TESTS = """
import json, os, requests
from airflow_provider_flows.emulator import Fault


def test_first(flow_emulator):
    for name in ("FLOWS", "GENERIO", "PROMPTCHAINER"):
        connection = json.loads(os.environ[f"AIRFLOW_CONN_{name}_DEFAULT"])
        assert connection["host"] == flow_emulator.url
        assert connection["password"] == flow_emulator.key
    flow_emulator.add_fault(Fault(times=None, status=500))
    assert requests.get(flow_emulator.url + "/flows").status_code == 500


def test_second(flow_emulator):
    assert flow_emulator.requests == ()
    assert flow_emulator.run_seconds == 0.5
    assert requests.get(flow_emulator.url + "/flows").status_code == 401


def test_without():
    assert "AIRFLOW_CONN_FLOWS_DEFAULT" not in os.environ
"""


def run_users_tests(folder: Path, conftest: str = "") -> str:
    """Run a user's tests in a separate pytest, with the emulator's plugin only, and return its output."""
    (folder / "test_users.py").write_text(USER_TESTS)
    (folder / "conftest.py").write_text(conftest)
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "airflow_provider_flows.emulator.pytest_plugin",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run(
        [*command, str(folder)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return result.stdout


def test_fixture_serves_users(tmp_path: Path) -> None:
    """Each test gets a reset emulator and its connections, which are removed afterwards."""
    assert "3 passed" in run_users_tests(tmp_path)


def test_fixture_without_the_extra_names_the_extra(tmp_path: Path) -> None:
    """Without the extra, only tests that use the fixture fail, with the commands that install it."""
    output = run_users_tests(tmp_path, "import sys\nsys.modules['trimesh'] = None\n")
    assert "pip install 'airflow-provider-flows[emulator]'" in output
    assert "in a clone of the repository, with pip install '.[emulator]'" in output
    assert "1 passed, 2 errors" in output


EVERY_ADDRESS = [
    "0.0.0.0",  # noqa: S104  # it is refused
    "",
    "0",
    "::",
    "::ffff:0.0.0.0",
    socket.gethostname(),
]
PUBLIC_KEYS = ["emulator", "", " "]


def _find_exposed(hosts: list[str]) -> list[str]:
    """Return the hosts that this machine can listen at and that are not its loopback interface."""
    exposed = []
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as one, contextlib.suppress(OSError):
            one.bind((host, 0))
            if not one.getsockname()[0].startswith(("127.", "::ffff:127.")):
                exposed.append(host)
    return exposed


@pytest.mark.parametrize("host", _find_exposed(EVERY_ADDRESS))
def test_public_key_is_refused_at_an_address_that_others_reach(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No entry serves other machines with the key that everybody knows; the message says what to do."""
    for key in PUBLIC_KEYS:
        with pytest.raises(ValueError, match="--key"), Emulator(key=key, host=host):
            pass
    with pytest.raises(ValueError, match=r"Emulator\(key=\.\.\.\)"), Emulator(host=host):
        pass
    assert main(["--host", host, "--port", "0"]) == 1
    assert "of your own with --key" in capsys.readouterr().err
    options = argparse.Namespace(options=["--host", host, "--port", "0"])
    with pytest.raises(SystemExit):
        run_cli_command(options)
    assert "of your own with --key" in capsys.readouterr().err
    with Emulator(key="a-key-of-my-own", host=host) as emulator:
        assert emulator.url


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "127.8.4.2", "localhost", "::1", "::ffff:127.0.0.1"])
def test_public_key_is_accepted_on_the_loopback_interface(host: str) -> None:
    """The default key is for this machine, whatever its loopback interface is called."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as one:
            one.bind((host, 0))
    except OSError:
        pytest.skip("this machine does not have the address")
    with Emulator(host=host) as emulator:
        assert emulator.key == "emulator"
