"""Tests of the *Flow run* tab and the *Flow runs* page in a browser; they take the screenshots of the docs.

`make test-browser` runs them.
"""

from __future__ import annotations

import json
import logging
import re
from base64 import b64encode
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import expect

from airflow_provider_flows.emulator import Fault, Plan
from airflow_provider_flows.plugin.run_view import PAGE_POLL_SECONDS
from tests.system.browser.page_checks import (
    assert_harmless,
    assert_readable,
    collect_percentages,
    count_model_colors,
    get_orbit,
    get_turn,
    hide,
    open_frame,
    save_screenshot,
    to_glb,
)
from tests.system.browser.stage import GRAPHS, IMAGES, NARROW, PASSWORDS, BrowserStage, open_stage

log = logging.getLogger(__name__)
pytestmark = pytest.mark.timeout(600)
expect.set_options(timeout=30_000)  # a page with a model takes seconds on a busy machine

SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
HOSTILE = '<img src=x onerror="window.top.hostile=1">'
HOSTILE_PROMPT = f"a ball{HOSTILE}</dd></pre><script>window.top.hostile=1</script>"
# an emulated run has no progress in the first tenth of its time; by then, the longest one has some
START_TIMEOUT_MILLISECONDS = 30_000
EXPECTED_END = re.compile(r"\s*Expected end in (about )?\d+ (s|min), at \d\d:\d\d(:\d\d)?\s*")
MIN_COLORS = 50  # of a model with light and shadow; an empty stage has none
RELOAD_MARKER = "window.notReloaded"  # a reload removes it


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserStage]:
    """Start the environment once."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with open_stage(tmp_path_factory.mktemp("browser")) as browser_stage:
        yield browser_stage


def test_the_tab_follows_a_run_to_its_end(stage: BrowserStage) -> None:
    """Progress moves without a reload until the final state; the stored file can be downloaded."""
    stage.emulator.add_plan(Plan(run_seconds=45))  # a first log-in takes a while
    run_id = stage.stack.trigger("browser_model")
    page = stage.log_in()
    stage.stack.wait_for_task("browser_model", run_id, "make", {"running"}, 60)
    frame = open_frame(page, stage.tab_url("browser_model", run_id, "make"))
    expect(frame.locator(".badge.running")).to_be_visible(timeout=60_000)
    frame.evaluate(f"{RELOAD_MARKER} = true")
    percentages = collect_percentages(frame, 3)
    assert percentages == sorted(percentages)
    expect(frame.locator('[data-is="end"]')).to_have_text(EXPECTED_END)
    expect(frame.get_by_role("heading", name="A modern office chair")).to_be_visible()
    assert_readable(frame)
    save_screenshot(page, "flow-run-running-light")
    expect(frame.locator(".badge.completed")).to_be_visible(timeout=60_000)
    expect(frame.locator(".location")).to_contain_text("file://", timeout=60_000)
    expect(frame.locator(".facts")).to_contain_text("triangles")
    expect(frame.get_by_text("success", exact=True)).to_be_visible(timeout=60_000)
    assert frame.evaluate(RELOAD_MARKER) is True
    assert count_model_colors(frame) > MIN_COLORS
    first = get_turn(frame)
    page.wait_for_timeout(2_500)
    assert get_turn(frame) != first  # it turns by itself
    assert frame.locator("#announcement").inner_text() == "Flow run completed"  # for screen readers
    assert_readable(frame)
    save_screenshot(page, "flow-run-light")
    with page.expect_download() as download:
        frame.get_by_role("link", name="Download").click()
    written = next(stage.output.rglob("*.glb"))
    assert Path(download.value.path()).read_bytes() == written.read_bytes()
    assert download.value.suggested_filename == written.name
    before = len([url for url in stage.browser_log.requested_urls if "/flows/json/" in url])
    page.wait_for_timeout(6_000)
    assert len([url for url in stage.browser_log.requested_urls if "/flows/json/" in url]) == before
    assert_harmless(page)


def test_a_model_is_turned_by_keyboard(stage: BrowserStage) -> None:
    """Tab reaches the model, which has a name; the arrow keys turn it; the ids are copied by one click."""
    run_id = stage.stack.trigger("browser_mapped")
    assert stage.stack.wait("browser_mapped", run_id, 120) == "success"
    page = stage.log_in(reduced_motion=True)
    frame = open_frame(page, stage.tab_url("browser_mapped", run_id, "make", 0))
    assert count_model_colors(frame) > MIN_COLORS
    assert frame.locator("model-viewer[auto-rotate]").count() == 0
    before, turn = get_orbit(frame), get_turn(frame)
    page.wait_for_timeout(1_500)
    assert (get_orbit(frame), get_turn(frame)) == (before, turn)  # nothing moves by itself
    label = "3D model: A round table"
    expect(frame.get_by_label(label)).to_have_count(1)
    page.mouse.move(300, 300)
    for _ in range(12):
        if frame.evaluate("document.activeElement.localName") == "model-viewer":
            break
        page.keyboard.press("Tab")
    else:
        frame.locator("model-viewer").focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
        page.mouse.move(310, 300)
    page.wait_for_timeout(800)
    assert get_orbit(frame) != before
    save_screenshot(page, "flow-run-keyboard-light")
    frame.get_by_text("Details").click()
    frame.locator(".ids button.copy").first.click()
    expect(frame.locator(".ids button.copy").first).to_have_text("Copied")


def test_before_and_after(stage: BrowserStage) -> None:
    """A model that was made from another one stands beside it, with the difference in words."""
    run_id = stage.stack.trigger("browser_reduced")
    assert stage.stack.wait("browser_reduced", run_id, 150) == "success"
    page = stage.log_in()
    frame = open_frame(page, stage.tab_url("browser_reduced", run_id, "shrink"))
    expect(frame.locator("model-viewer")).to_have_count(2)
    expect(frame.locator(".change")).to_have_text(re.compile(r"^[\d,]+ → 500 triangles, [\d.]+ → [\d.]+ kB$"))
    for index in range(2):
        assert count_model_colors(frame, index) > MIN_COLORS
    assert frame.locator("model-viewer[auto-rotate]").count() == 1
    assert_readable(frame)
    save_screenshot(page, "flow-run-before-after-light")
    frame.get_by_role("link", name="A round table").click()
    expect(frame.get_by_role("heading", name="Outputs")).to_be_visible()
    dark = stage.log_in(dark=True, size=NARROW)
    dark.goto(stage.content_url("browser_reduced", run_id, "shrink"))
    expect(dark.locator("model-viewer")).to_have_count(2)
    assert count_model_colors(dark) > MIN_COLORS
    assert_readable(dark, NARROW[0])
    save_screenshot(dark, "flow-run-before-after-narrow-dark")


def test_without_webgl(stage: BrowserStage) -> None:
    """A browser that cannot show 3D has a text in place of the model, and loads no viewer."""
    run_id = stage.stack.trigger("browser_mapped")
    assert stage.stack.wait("browser_mapped", run_id, 120) == "success"
    with stage.open_browser("--disable-3d-apis") as other:
        page = other.log_in()
        frame = open_frame(page, stage.tab_url("browser_mapped", run_id, "make", 1))
        expect(frame.get_by_text("This browser shows no 3D")).to_be_visible()
        assert not [url for url in other.browser_log.requested_urls if "/viewer/" in url]
        assert_readable(frame)
        save_screenshot(page, "flow-run-no-webgl-light")
        assert [error for error in other.browser_log.errors if "WebGL" not in error] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no model at all", "not a GLB 3D model"),
        (to_glb({"extensionsRequired": ["KHR_draco_mesh_compression"]}), "compressed with Draco"),
        (to_glb({"images": [{"uri": "https://other.example/a.png"}]}), "refers to other files"),
        (to_glb({"asset": {"version": "2.0"}, "scenes": 7, "meshes": "x"}), "could not be displayed"),
    ],
    ids=["no GLB", "Draco", "other files", "damaged"],
)
def test_a_model_that_cannot_be_displayed(stage: BrowserStage, content: bytes, message: str) -> None:
    """The stage says why and what to do; a hostile name of the input's file is escaped in all titles."""
    folder = stage.output / "inputs"
    folder.mkdir(exist_ok=True)
    picture = folder / f"chair{HOSTILE.replace('/', '')}.png"
    picture.write_bytes((IMAGES / "../../example_dags/images/chair.png").read_bytes())
    body = json.dumps({"data": f"data:model/gltf-binary;base64,{b64encode(content).decode()}"}).encode()
    as_json = {"content-type": "application/json"}
    stage.emulator.add_fault(Fault("GET", "*/outputs/*", times=None, status=200, body=body, headers=as_json))
    run_id = stage.stack.trigger("browser_from_image", {"uri": picture.as_uri()})
    assert stage.stack.wait("browser_from_image", run_id, 120) == "success"
    stage.emulator.clear_faults()
    errors = list(stage.browser_log.errors)
    page = stage.log_in()
    frame = open_frame(page, stage.tab_url("browser_from_image", run_id, "make"))
    expect(frame.locator(".stage")).to_contain_text(message)
    expect(frame.get_by_role("heading", name=HOSTILE.replace("/", "")).first).to_be_visible()
    assert_harmless(page)
    assert_readable(frame)
    if "could not" in message:
        stage.browser_log.errors[:] = errors  # the viewer reports what it cannot read


def test_twenty_tabs_of_a_model_load_it_once(stage: BrowserStage) -> None:
    """However many tabs show a model that only the service has, it is requested once, and its header once."""
    run_id = stage.stack.trigger("browser_mapped")
    assert stage.stack.wait("browser_mapped", run_id, 120) == "success"
    context = stage.log_in().context
    before = len(stage.emulator.requests)
    url = stage.content_url("browser_mapped", run_id, "make", 0)
    tabs = [context.new_page() for _ in range(20)]
    for tab in tabs:
        tab.goto(url)
    for tab in tabs:
        expect(tab.locator(".stage")).to_have_count(1, timeout=60_000)
    for tab in (tabs[0], tabs[-1]):
        tab.bring_to_front()
        assert count_model_colors(tab) > MIN_COLORS
    paths = [request.path for request in stage.emulator.requests[before:] if request.method == "GET"]
    files = [path for path in paths if "/outputs/" in path]
    log.info("20 tabs of a model: %d requests, %d of them for the file", len(paths), len(files))
    assert len(files) <= 2
    assert len(paths) <= 4  # with the run and its outputs
    context.close()


def test_a_hidden_tab_does_not_poll(stage: BrowserStage) -> None:
    """A hidden tab stops polling and resumes at once when it is visible; a logged-out user gets a message."""
    stage.emulator.add_plan(Plan(run_seconds=90))
    run_id = stage.stack.trigger("browser_left")
    assert stage.stack.wait("browser_left", run_id, 60) == "success"
    page = stage.log_in()
    page.goto(stage.content_url("browser_left", run_id, "start"))
    urls = stage.browser_log.requested_urls
    expect(page.locator('[data-is="percent"]')).not_to_have_text("0 %", timeout=START_TIMEOUT_MILLISECONDS)
    hide(page, hidden=True)
    page.wait_for_timeout(500)  # what was on its way
    before, shown = len(urls), page.locator('[data-is="percent"]').inner_text()
    page.wait_for_timeout(8_000)
    assert urls[before:] == []
    hide(page, hidden=False)
    expect(page.locator('[data-is="percent"]')).not_to_have_text(shown, timeout=2_000)
    errors = list(stage.browser_log.errors)
    page.context.clear_cookies()
    expect(page.get_by_role("heading", name="Not logged in")).to_be_visible()
    before = len(urls)
    page.wait_for_timeout(4_000)
    assert urls[before:] == []
    stage.browser_log.errors[:] = errors  # the browser reports the denied request


def test_twenty_tabs_cost_no_more_than_one(stage: BrowserStage) -> None:
    """Twenty tabs with one active run cost at most one poll per interval, and all of them show progress."""
    stage.emulator.add_plan(Plan(run_seconds=150))
    run_id = stage.stack.trigger("browser_left")
    assert stage.stack.wait("browser_left", run_id, 60) == "success"
    context = stage.log_in().context
    tabs = [context.new_page() for _ in range(20)]
    for tab in tabs:
        tab.goto(stage.content_url("browser_left", run_id, "start"))
    flow_run_id = tabs[0].locator("dd .copyable code").first.inner_text()
    before = len(stage.emulator.requests)
    first = [tab.locator('[data-is="percent"]').inner_text() for tab in tabs]
    for tab, shown in zip(tabs, first, strict=True):
        expect(tab.locator('[data-is="percent"]')).not_to_have_text(shown, timeout=START_TIMEOUT_MILLISECONDS)
    tabs[0].wait_for_timeout(4 * 1000 * PAGE_POLL_SECONDS)
    poll_times = [
        recorded.at
        for recorded in stage.emulator.requests[before:]
        if recorded.path == f"/flows/{flow_run_id}"
    ]
    intervals = [later - earlier for earlier, later in pairwise(poll_times)]
    log.info(
        "%d polls of the run in %.1f s, at least %.2f s apart",
        len(poll_times),
        poll_times[-1] - poll_times[0],
        min(intervals),
    )
    assert len(poll_times) >= 4
    assert min(intervals) >= PAGE_POLL_SECONDS
    context.close()


def test_the_runs_of_earlier_tries(stage: BrowserStage) -> None:
    """The tab shows the latest try's run and links to the run of the earlier try."""
    stage.emulator.add_plan(Plan(outcome="failed", error="The mesh has a hole", run_seconds=2))
    run_id = stage.stack.trigger("browser_tries")
    assert stage.stack.wait("browser_tries", run_id, 150) == "success"
    page = stage.log_in()
    frame = open_frame(page, stage.tab_url("browser_tries", run_id, "make"))
    expect(frame.locator(".badge.completed")).to_be_visible()
    save_screenshot(page, "flow-run-tries-light")
    frame.get_by_role("link", name="Try 1").click()
    expect(frame.get_by_text("The mesh has a hole")).to_be_visible()
    frame.get_by_role("link", name="Flow run of the latest try").click()
    expect(frame.locator(".badge.completed")).to_be_visible()


def test_a_chain_of_prompts_with_a_hostile_name(stage: BrowserStage) -> None:
    """Image and text outputs are shown, a hostile flow name is escaped, also in dark mode."""
    graph = json.loads((GRAPHS / f"{SAMPLE}.json").read_text())
    stage.emulator.add_graph(HOSTILE, graph)
    hostile = stage.stack.trigger("browser_chain", {"flow": HOSTILE, "item": HOSTILE_PROMPT})
    plain = stage.stack.trigger("browser_chain", {"flow": SAMPLE})
    for run_id in (hostile, plain):
        assert stage.stack.wait("browser_chain", run_id, 90) == "success"
    page = stage.log_in(dark=True)
    frame = open_frame(page, stage.tab_url("browser_chain", hostile, "write"))
    expect(frame.locator(".lead").get_by_text(HOSTILE, exact=True)).to_be_visible()
    expect(frame.get_by_text(HOSTILE_PROMPT, exact=True)).to_be_visible()
    assert HOSTILE_PROMPT in frame.locator(".view.text").first.inner_text()
    assert_harmless(page)
    frame = open_frame(page, stage.tab_url("browser_chain", plain, "write"))
    assert "dark" in frame.evaluate("document.documentElement.className")
    expect(frame.locator(".flow-drawing")).to_be_visible()
    image = frame.locator(".output img")
    image.scroll_into_view_if_needed()
    frame.wait_for_function("document.querySelector('.output img').naturalWidth > 0")
    frame.evaluate("window.scrollTo(0, 0)")
    assert_readable(frame)
    save_screenshot(page, "flow-run-dark")
    with page.expect_download() as download:
        frame.locator(".output.text").get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_text() == frame.locator(".view.text").inner_text()


def test_each_mapped_instance_has_its_own_run(stage: BrowserStage) -> None:
    """The tab of a mapped task instance shows that instance's run, and its output from the service."""
    run_id = stage.stack.trigger("browser_mapped")
    assert stage.stack.wait("browser_mapped", run_id, 120) == "success"
    page = stage.log_in()
    for index, prompt in enumerate(("A round table", "A stool")):
        frame = open_frame(page, stage.tab_url("browser_mapped", run_id, "make", index))
        expect(frame.get_by_text(prompt)).to_be_visible()
        expect(frame.get_by_text("model/gltf-binary")).to_be_visible()
        expect(frame.locator(".facts")).to_contain_text("triangles")
    with page.expect_download() as download:
        frame.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes().startswith(b"glTF")


def test_a_batch(stage: BrowserStage) -> None:
    """The tab follows a batch to its end; its items are filtered, searched and opened by keyboard."""
    stage.emulator.add_plan(Plan(outcome="failed", error=f"The mesh has a hole {HOSTILE}", times=2))
    page = stage.log_in()  # takes a while, and the first manifest is to be seen
    run_id = stage.stack.trigger("browser_batch")
    stage.stack.wait_for_task("browser_batch", run_id, "make", {"running", "deferred"}, 60)
    frame = open_frame(page, stage.tab_url("browser_batch", run_id, "make"))
    expect(frame.locator("tbody tr").nth(15)).to_be_visible(timeout=120_000)  # the first manifest
    frame.evaluate(f"{RELOAD_MARKER} = true")
    expect(frame.get_by_text("expected end")).to_be_visible()
    assert_readable(frame)
    save_screenshot(page, "flow-batch-running-light")
    assert stage.stack.wait("browser_batch", run_id, 300) == "success"
    expect(frame.locator(".lead .badge")).to_have_text("success", timeout=60_000)
    expect(frame.locator(".legend li")).to_have_text(["52 completed", "2 failed"])
    expect(frame.get_by_role("img", name="52 completed, 2 failed")).to_be_visible()
    assert frame.evaluate(RELOAD_MARKER) is True
    expect(frame.get_by_text("Page 1 of 2")).to_be_visible()
    frame.get_by_role("navigation", name="State").get_by_role("link", name="failed").focus()
    page.keyboard.press("Enter")
    expect(frame.locator("tbody tr")).to_have_count(2)
    expect(frame.get_by_text(HOSTILE).first).to_be_visible()
    frame.get_by_role("link", name="All listed").click()
    frame.get_by_label("Key").fill("rustic-stool")
    page.keyboard.press("Enter")
    expect(frame.locator("tbody tr")).to_have_count(6)
    with page.expect_download() as download:
        frame.get_by_role("link", name=re.compile("of rustic-stool-1$")).click()
    written = next((stage.output / "chairs" / "rustic-stool-1").glob("*.glb"))
    assert Path(download.value.path()).read_bytes() == written.read_bytes()
    frame.get_by_role("link", name="rustic-stool-1", exact=True).focus()
    page.keyboard.press("Enter")
    expect(frame.locator(".facts")).to_contain_text("triangles")
    frame.get_by_role("link", name="Batch").click()
    expect(frame.locator("tbody tr")).to_have_count(50)
    assert_harmless(page)
    dark = stage.log_in(dark=True)
    frame = open_frame(dark, stage.tab_url("browser_batch", run_id, "make"))
    expect(frame.locator("tbody tr")).to_have_count(50)
    assert_readable(frame)
    save_screenshot(dark, "flow-batch-dark")
    small = stage.log_in(size=NARROW)
    small.goto(stage.content_url("browser_batch", run_id, "make"))
    expect(small.locator("tbody tr")).to_have_count(50)
    assert_readable(small, NARROW[0])


def test_a_task_without_a_run_has_a_message(stage: BrowserStage) -> None:
    """Airflow shows the tab on every task."""
    run_id = stage.stack.trigger("browser_none")
    stage.stack.wait("browser_none", run_id, 60)
    frame = open_frame(stage.log_in(), stage.tab_url("browser_none", run_id, "nothing"))
    expect(frame.get_by_text("This task instance has no flow run")).to_be_visible()


def test_the_page_of_all_runs(stage: BrowserStage) -> None:
    """A connection's runs are updated, filtered, sorted and opened by keyboard; errors have messages."""
    stage.emulator.add_plan(
        Plan(outcome="failed", error="The mesh has a hole that cannot be closed", run_seconds=60)
    )
    stage.emulator.add_plan(Plan(run_seconds=60))  # a log-in takes a while
    runs = [stage.stack.trigger("browser_model", {"prompt": prompt}) for prompt in ("A lamp", "A vase")]
    stage.stack.wait_for_task("browser_model", runs[1], "make", {"running"}, 60)
    page = stage.log_in()
    frame = open_frame(page, f"{stage.stack.address}/plugin/flow-runs")
    expect(frame.locator("td .badge.running").first).to_be_visible(timeout=60_000)
    still = frame.locator('[data-is="percent"]').filter(has_text=re.compile(r"^\s*0 %\s*$"))
    expect(still).to_have_count(0, timeout=START_TIMEOUT_MILLISECONDS)  # each has some progress
    assert_readable(frame)
    save_screenshot(page, "flow-runs-light")
    for run_id in runs:
        stage.stack.wait("browser_model", run_id, 150)
    expect(frame.locator("td .badge.failed").first).to_be_visible()
    stage.start_run("model_generate_fromimage")
    frame.get_by_label("Flow", exact=True).select_option("model_generate_fromimage")
    expect(frame.locator("td.flow").first).to_have_text("model_generate_fromimage")
    expect(frame.get_by_label("Flow", exact=True)).to_have_value("model_generate_fromimage")
    frame.get_by_label("Flow", exact=True).select_option("All flows")
    frame.get_by_label("Search").fill("Browser_Model")
    page.keyboard.press("Enter")
    expect(frame.locator("td.flow").first).to_have_text("model_generate_fromprompt")
    expect(frame.get_by_role("link", name=re.compile("^browser_model .* make$")).first).to_be_visible()
    expect(frame.get_by_role("link", name="A vase")).to_be_visible()
    frame.locator(".filters .badge.failed").click()
    expect(frame.locator("td .badge:not(.failed)")).to_have_count(0)
    expect(frame.locator("td").get_by_text("The mesh has a hole that cannot be closed")).to_be_visible()
    frame.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    expect(frame.get_by_text("The mesh has a hole that cannot be closed")).to_be_visible()
    frame.get_by_role("link", name="Flow runs").click()
    frame.get_by_role("link", name="Duration").click()
    expect(frame.locator("th[aria-sort]")).to_have_text("Duration ↓")
    for connection, message in (("wrong_key", "rejected the API key"), ("away", "could not be fetched")):
        frame.get_by_role("link", name=connection).click()
        expect(frame.get_by_role("alert")).to_contain_text(message)
    frame.get_by_role("link", name="promptchainer_default").click()
    frame.get_by_role("link", name=SAMPLE).click()
    expect(frame.locator(".flow-drawing")).to_be_visible()
    save_screenshot(page, "flow-light")


def test_dark_and_narrow(stage: BrowserStage) -> None:
    """The page supports dark mode and narrow screens; a hostile name in the list is escaped."""
    page = stage.log_in(dark=True)
    frame = open_frame(page, f"{stage.stack.address}/plugin/flow-runs")
    assert_readable(frame)
    save_screenshot(page, "flow-runs-dark")
    body = {"flows": [{"flow_id": HOSTILE, "template": HOSTILE, "state": "running", "progress": 0.4}]}
    stage.emulator.add_fault(
        Fault(method="GET", path="/flows", times=None, status=200, body=json.dumps(body).encode())
    )
    small = stage.log_in(size=NARROW)
    small.goto(f"{stage.stack.address}/flows/connection/flows_default")
    expect(small.locator("td.flow")).to_have_text([HOSTILE], timeout=30_000)
    assert_harmless(small)
    stage.emulator.clear_faults()
    expect(small.locator("tbody tr").nth(2)).to_be_visible(timeout=30_000)
    assert_readable(small, NARROW[0])
    save_screenshot(small, "flow-runs-narrow-light")
    small.locator("tbody a").first.click()
    expect(small.get_by_role("heading", name="Timeline")).to_be_visible()
    assert_readable(small, NARROW[0])
    save_screenshot(small, "flow-run-narrow-light")


def test_users_without_access(stage: BrowserStage) -> None:
    """A viewer may see no connection's runs; an anonymous user may see nothing."""
    errors = list(stage.browser_log.errors)
    page = stage.log_in("vera")
    frame = open_frame(page, f"{stage.stack.address}/plugin/flow-runs")
    expect(frame.get_by_role("heading", name="No connections")).to_be_visible()
    response = page.goto(f"{stage.stack.address}/flows/connection/flows_default")
    assert response is not None
    assert response.status == 403
    expect(page.get_by_role("heading", name="Access denied")).to_be_visible()
    anonymous = stage.browser.new_context().new_page()
    response = anonymous.goto(f"{stage.stack.address}/flows/connection/flows_default")
    assert response is not None
    assert response.status == 401
    stage.browser_log.errors[:] = errors  # the browser reports the denied request


def test_the_browser_reported_no_error(stage: BrowserStage) -> None:
    """The console has no error, all requests went to Airflow, and no URL contains the password."""
    assert stage.browser_log.errors == []
    assert stage.browser_log.hosts() == {stage.stack.address.removeprefix("http://")}
    assert PASSWORDS["admin"] not in "".join(stage.browser_log.requested_urls)
