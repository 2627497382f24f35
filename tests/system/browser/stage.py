"""The environment of the browser tests: an emulator, an Airflow with two users, and Debian's chromium."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from airflow_provider_flows.emulator import Emulator
from tools.airflow_stack import Stack

DAGS = Path(__file__).parent / "dags"
GRAPHS = Path(__file__).parents[3] / "airflow_provider_flows" / "emulator" / "graphs"
IMAGES = Path(__file__).parents[3] / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PASSWORDS = {"admin": "admin-of-the-tests", "vera": "viewer-of-the-tests"}
RUN_SECONDS = 14.0
IGNORED_WARNING = (
    "An iframe which has both allow-scripts and allow-same-origin"  # about the frame that Airflow creates
)
READ_BACK_WARNING = "GPU stall due to ReadPixels"  # when a test reads the pixels of a model
WIDE, NARROW = (1600, 1000), (400, 900)


@dataclass
class BrowserLog:
    """Console errors and requested URLs of all pages."""

    errors: list[str] = field(default_factory=list)
    requested_urls: list[str] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        """Record the events of a page."""
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._on_request)

    def hosts(self) -> set[str]:
        """Return the hosts of all requests."""
        return {urlsplit(url).netloc for url in self.requested_urls if not url.startswith(("data:", "blob:"))}

    def _on_console(self, message: ConsoleMessage) -> None:
        is_ignored = message.text.startswith(IGNORED_WARNING) or READ_BACK_WARNING in message.text
        if message.type in {"error", "warning"} and not is_ignored:
            self.errors.append(f"{message.type}: {message.text} ({(message.location or {}).get('url')})")

    def _on_request(self, request: Request) -> None:
        self.requested_urls.append(request.url)


@dataclass
class BrowserStage:
    """The running environment."""

    emulator: Emulator
    stack: Stack
    browser: Browser
    browser_log: BrowserLog
    output: Path

    def log_in(
        self,
        user: str = "admin",
        *,
        dark: bool = False,
        size: tuple[int, int] = WIDE,
        reduced_motion: bool = False,
    ) -> Page:
        """Open a page in a new browser context and log a user in."""
        context: BrowserContext = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            reduced_motion="reduce" if reduced_motion else "no-preference",
        )
        page = context.new_page()
        page.set_default_timeout(90_000)
        self.browser_log.attach(page)
        page.goto(f"{self.stack.address}/auth/login")
        page.get_by_label("Username").fill(user)
        page.locator("input[type=password]").fill(PASSWORDS[user])
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/auth/login" not in url)
        return page

    def tab_url(self, dag_id: str, run_id: str, task_id: str, map_index: int | None = None) -> str:
        """Return the URL of the tab in Airflow's UI."""
        mapped = "" if map_index is None else f"/mapped/{map_index}"
        run_url = f"{self.stack.address}/dags/{dag_id}/runs/{quote(run_id, safe='')}"
        return f"{run_url}/tasks/{task_id}{mapped}/plugin/flow-run"

    def content_url(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Return the URL of the tab's content, without Airflow's UI."""
        return f"{self.stack.address}/flows/task/{dag_id}/{quote(run_id, safe='')}/{task_id}/{map_index}"

    @contextmanager
    def open_browser(self, *args: str) -> Iterator[BrowserStage]:
        """Start another browser with further arguments, with a log of its own."""
        browser = self.browser.browser_type.launch(
            executable_path=find_browser(), args=["--no-sandbox", *args], env=dict(os.environ)
        )
        try:
            yield replace(self, browser=browser, browser_log=BrowserLog())
        finally:
            browser.close()

    def start_run(self, template: str) -> None:
        """Start a flow run without Airflow, with the API key."""
        image = (
            "data:image/png;base64,"
            + b64encode((IMAGES / "../../example_dags/images/chair.png").read_bytes()).decode()
        )
        headers = {"authorization": f"Bearer {self.emulator.key}"}
        body = {"template": template, "inputs": [{"data": image}]}
        requests.post(f"{self.emulator.url}/flows", json=body, headers=headers, timeout=10).raise_for_status()


def find_browser() -> str:
    """Return the path of Debian's chromium."""
    browser_path = next((path for path in map(shutil.which, BROWSERS) if path), None)
    assert browser_path, "chromium is not installed; on Debian: apt-get install chromium"
    return browser_path


@contextmanager
def open_stage(folder: Path) -> Iterator[BrowserStage]:
    """Start the environment, and stop it at the end."""
    output = Path(tempfile.mkdtemp(prefix="flows-"))  # its name is in the screenshots
    home = folder / "airflow"
    home.mkdir()
    secret = home / "users.json"
    secret.write_text(json.dumps(PASSWORDS))
    environment = {
        "FLOWS_DEMO_OUTPUT": output.as_uri(),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,vera:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(secret),
    }
    with Emulator(run_seconds=RUN_SECONDS) as emulator:
        stack = Stack(home, DAGS, environment=environment, tuned=True, parallelism=3)
        stack.password = PASSWORDS["admin"]
        stack._credentials["password"] = PASSWORDS["admin"]
        with stack, sync_playwright() as playwright:
            _connect(stack, emulator)
            # in a container, chromium's sandbox needs privileges that root does not have
            browser = playwright.chromium.launch(
                executable_path=find_browser(), args=["--no-sandbox"], env=dict(os.environ)
            )
            try:
                yield BrowserStage(emulator, stack, browser, BrowserLog(), output)
            finally:
                browser.close()
                shutil.rmtree(output, ignore_errors=True)


def _connect(stack: Stack, emulator: Emulator) -> None:
    """Import the connections, one of them with an invalid key and one to an unreachable host."""
    connections = {
        "flows_default": {"conn_type": "generio", "host": emulator.url, "password": emulator.key},
        "promptchainer_default": {
            "conn_type": "promptchainer",
            "host": emulator.url,
            "password": emulator.key,
            "extra": json.dumps({"graphs": GRAPHS.as_uri()}),
        },
        "wrong_key": {"conn_type": "generio", "host": emulator.url, "password": "not-the-key"},
        "away": {"conn_type": "generio", "host": "http://127.0.0.1:9", "password": "any"},
    }
    file = stack.home / "connections.json"
    file.write_text(json.dumps(connections))
    stack.airflow("connections", "import", "--overwrite", str(file))
