"""Tests of what the pages of flow runs are made of: answers that are shared, the header of a model, shapes, the door.

The pages themselves are tested behind Airflow's own app (test_plugin_site.py).
"""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from importlib.metadata import entry_points
from threading import Event
from typing import Any

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.exceptions import FlowNotFound, FlowRateLimited, FlowUnreachable
from airflow_provider_flows.core.run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.plugin import FlowsPlugin, glb_header, html, schemas
from airflow_provider_flows.plugin.airflow_internals import TaskInstanceData
from airflow_provider_flows.plugin.cache import (
    MAX_ERROR_TTL_SECONDS,
    MAX_SERVICE_THREADS,
    MIN_ERROR_TTL_SECONDS,
    STILL_WAITING,
    CachedResponse,
    ResponseCache,
)
from airflow_provider_flows.plugin.lazy_app import PREFIX
from airflow_provider_flows.plugin.run_view import RunView, get_task_run_view
from tests.test_import_cost import HEAVY, fresh


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Tell them."""
        return self.now


async def test_an_answer_is_asked_for_once_in_each_interval_however_many_want_it() -> None:
    """Twenty who come while it is on its way, and twenty more until it is stale, cost one question."""
    clock, go = Clock(), Event()
    answers, asked = ResponseCache(clock), []

    def ask() -> int:
        asked.append(clock.now)
        assert go.wait(10)
        return len(asked)

    waiting = [asyncio.create_task(answers.get("run", ask, lambda _: 2.5)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # a tab that is closed takes the answer from nobody
    go.set()
    assert await asyncio.gather(*waiting[1:]) == [CachedResponse(1)] * 19
    for later, wanted in ((2.4, 1), (2.5, 2), (4.9, 2), (5.0, 3)):
        clock.now = 100.0 + later
        assert (await answers.get("run", ask, lambda _: 2.5)).value == wanted
    assert asked == [100.0, 102.5, 105.0]


async def test_an_error_is_kept_for_a_moment_beside_what_was_known() -> None:
    """A service in trouble is left alone for a while, for as long as it asks, and what it told before is still there."""
    clock = Clock()
    answers, told = (
        ResponseCache(clock),
        iter(["known", FlowUnreachable("away"), FlowRateLimited("slow", retry_after=3600), "back"]),
    )

    def ask() -> str:
        value = next(told)
        if isinstance(value, Exception):
            raise value
        return value

    async def get() -> tuple[str | None, str]:
        answer = await answers.get("run", ask, lambda _: 1.0)
        return answer.value, str(answer.error)

    assert await get() == ("known", "None")
    clock.now += 1
    assert await get() == await get() == ("known", "away")
    clock.now += MIN_ERROR_TTL_SECONDS
    assert await get() == ("known", "slow")
    clock.now += MAX_ERROR_TTL_SECONDS - 1
    assert await get() == ("known", "slow")
    clock.now += 1
    assert await get() == ("back", "None")


async def test_what_is_no_error_of_ours_is_raised_and_not_kept() -> None:
    """A fault in a program is seen, and the next who asks has another chance."""
    answers, told = ResponseCache(), iter([ZeroDivisionError("fault"), "fine"])

    def ask() -> str:
        value = next(told)
        if isinstance(value, Exception):
            raise value
        return value

    with pytest.raises(ZeroDivisionError):
        await answers.get("run", ask, lambda _: 60.0)
    assert (await answers.get("run", ask, lambda _: 60.0)).value == "fine"


async def test_who_waits_too_long_is_told_so_and_what_was_known_before() -> None:
    """A service that is silent holds no page up; its answer is there for who comes after it."""
    clock, go = Clock(), Event()
    answers = ResponseCache(clock, wait_seconds=0.05)
    assert (await answers.get("run", lambda: "known", lambda _: 1.0)).value == "known"
    clock.now += 1
    late = [await answers.get("run", lambda: go.wait(10) and "late", lambda _: 1.0) for _ in range(2)]
    assert [(one.value, str(one.error)) for one in late] == [("known", STILL_WAITING)] * 2
    go.set()
    patient = ResponseCache(clock)
    patient._entries = answers._entries
    assert await patient.get("run", lambda: "again", lambda _: 1.0) == CachedResponse("late")


async def test_files_that_take_long_hold_up_no_page() -> None:
    """Whole files are fetched in threads of their own, however many are wanted at once."""
    go, answers = Event(), ResponseCache()
    files = [
        asyncio.create_task(answers.run_in_file_pool(lambda: go.wait(10)))
        for _ in range(2 * MAX_SERVICE_THREADS)
    ]
    await asyncio.sleep(0)
    assert (await answers.get("run", lambda: "here", lambda _: 1.0)).value == "here"
    assert not any(file.done() for file in files)
    go.set()
    assert all(await asyncio.gather(*files))


def glb_file(gltf: Any, *, size: int | None = None) -> bytes:
    """Make the beginning of a GLB file."""
    header = gltf if isinstance(gltf, bytes) else json.dumps(gltf).encode()
    return (
        struct.pack(
            "<4sIIII", b"glTF", 2, 1000, len(header) if size is None else size, glb_header.JSON_CHUNK_TYPE
        )
        + header
    )


def test_a_models_header_tells_of_its_parts() -> None:
    """Triangles are counted in lists, strips and fans, with and without indices."""
    accessors = [{"count": 12}, {"count": 30}]
    primitives = [
        {"attributes": {"POSITION": 0}, "indices": 1},  # 10
        {"attributes": {"POSITION": 0}},  # 4
        {"attributes": {"POSITION": 0}, "mode": 5},  # 10
        {"attributes": {"POSITION": 0}, "mode": 6},  # 10
        {"attributes": {"POSITION": 0}, "mode": 1},  # lines
    ]
    gltf = {
        "asset": {"generator": "a\ntool"},
        "accessors": accessors,
        "meshes": [{"primitives": primitives}],
        "materials": [{}, {}],
    }
    told = glb_header.parse_header(glb_file(gltf))
    assert (told.meshes, told.triangles, told.materials, told.textures) == (1, 34, 2, 0)
    assert told.generator == "a\N{REPLACEMENT CHARACTER}tool"


@pytest.mark.parametrize(
    "gltf",
    [
        {"meshes": 7, "accessors": {"count": 3}, "asset": []},
        {
            "meshes": [
                {"primitives": [{"indices": True}, {"indices": -1}, {"indices": 9}, {"attributes": 4}, 5]},
                None,
            ]
        },
        {"meshes": [{"primitives": [{"indices": 0, "mode": []}]}], "accessors": [{"count": "many"}]},
    ],
)
def test_an_odd_header_tells_what_it_can(gltf: Any) -> None:
    """What is no number and no list counts for nothing."""
    assert glb_header.parse_header(glb_file(gltf)).triangles == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"glTF",
        b"\x89PNG" + b"\0" * 40,
        glb_file({})[:-1],
        glb_file(b"[1]"),
        glb_file(b"{"),
        glb_file({}, size=glb_header.MAX_JSON_CHUNK_BYTES + 1),
    ],
)
def test_what_is_no_model_is_refused(data: bytes) -> None:
    """A file that is something else, ends too soon or has a header beyond all bounds raises ValueError, and nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011  # the words differ
        glb_header.parse_header(data)


RUNNING, DONE = (FlowRun("r", "generio", state=state) for state in (FlowState.RUNNING, FlowState.COMPLETED))


@pytest.mark.parametrize(
    ("sight", "again"),
    [
        (RunView("r", "c", RUNNING), True),
        (RunView("r", "c", DONE), False),
        (RunView("r", "c", DONE, task_state="running"), True),  # its files are on their way
        (RunView("r", "c", DONE, task_state="up_for_retry"), True),  # another run may come
        (RunView("r", "c", DONE, task_state="success"), False),
        (RunView("r", "c", DONE, (FlowOutput("model", "a", status="pending"),), task_state="success"), True),
        (RunView("r", None, RUNNING, task_state="success"), False),  # nobody can be asked
        (RunView("r", "c", RUNNING, error=FlowNotFound("gone", status=404), task_state="failed"), False),
        (RunView("r", "c", error=FlowUnreachable("away")), True),
        (RunView(task_state="queued"), True),
        (RunView(task_state="success"), False),
    ],
)
def test_a_page_looks_again_while_something_may_change(sight: RunView, again: bool) -> None:  # noqa: FBT001  # a table's column
    """It stops when the run is final and its task is over, and when there is nobody to ask."""
    assert (sight.to_page().refresh_after is not None) is again


def test_a_signed_link_is_not_shown() -> None:
    """Whoever has such a link has the file; the page tells that there is one."""
    link = "https://x.blob.core.windows.net/a.png?sig=0123456789abcdef0123456789"
    shown = schemas.to_output_schemas(
        [FlowOutput("picture", value=link, media_type="image/png")], is_at_service=True
    )[0]
    assert link not in shown.model_dump_json()
    assert shown.note
    assert not shown.is_downloadable


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        ("A chair", [("1", "A chair")]),
        ('["A chair", {"data": "A stool"}]', [("1", "A chair"), ("2", "A stool")]),
        ({"color": "red", "api_key": "secret-of-mine"}, [("color", "red"), ("api_key", "***")]),
        ([{"uri": "s3://bucket/a.png"}], [("1", "s3://bucket/a.png")]),
        (["data:image/png;base64,AAAA"], [("1", "data:image/png;base64,… (4 characters)")]),
        (None, []),
    ],
)
def test_inputs_are_told_in_every_form_that_a_task_takes(taken: Any, told: list[tuple[str, str]]) -> None:
    """Prompts and variables as they are, files by their place, and what is secret not at all."""
    assert [(each.name, each.text) for each in schemas.to_input_schemas(taken)] == told


SIGNS = st.text(st.characters(), max_size=20)  # halves of characters too
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**310) | st.floats() | SIGNS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SIGNS, inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "flow",
    "state",
    "progress",
    "created_at",
    "started_at",
    "finished_at",
    "error",
    "name",
    "asset_id",
    "status",
    "media_type",
)
ODD = st.fixed_dictionaries({}, optional=dict.fromkeys((*NAMES, "value", "uri", "size", "sha256"), ANYTHING))
RETURNED = st.builds(
    lambda told, outputs, known: {**told, **known, "outputs": outputs},
    ODD,
    st.lists(ODD, max_size=3) | ANYTHING,
    st.fixed_dictionaries({"flow_run_id": SIGNS}, optional={"service": SIGNS | ANYTHING}),
)


@given(
    result=RETURNED | ANYTHING,
    outputs=st.lists(ODD, max_size=3) | ANYTHING,
    before=ANYTHING,
    inputs=ANYTHING | SIGNS,
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_stands_in_xcom_makes_a_page(result: Any, outputs: Any, before: Any, inputs: Any) -> None:
    """Any task may push anything, and whoever may write XComs too: the tab shows what can be shown, and never breaks."""
    left = TaskInstanceData(
        "success", 2, {"inputs": inputs, "parameters": inputs}, before, result, outputs=outputs
    )
    look = asyncio.run(get_task_run_view(left)).to_page()
    assert json.loads(look.model_dump_json())["version"]
    request = Request({"type": "http", "root_path": "/flows"})
    shown = asyncio.run(
        html.render_page(
            request, "run.html", run_page=look, run_path="task/x", graph=None, back=None, back_label=""
        )
    )
    assert b"<main" in shown.body


@pytest.mark.parametrize(
    "written", [None, "text", [1, None, {}], [{"name": 5, "size": -1, "uri": ["x"]}], {"name": "x"}]
)
def test_outputs_that_others_have_written_are_read_with_care(written: Any) -> None:
    """Whatever stands in an XCom, outputs are made of texts and sizes only."""
    for output in schemas.parse_outputs(written):
        assert (output.uri, output.size, output.asset_id) == (None, None, None)
        assert output.name


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (None, ""),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (35028, "35.0 kB"),
        (999_999, "1000 kB"),
        (5 * 10**9, "5.0 GB"),
    ],
)
def test_sizes_are_worded(count: int | None, told: str) -> None:
    """In thousands, as stores bill them."""
    assert html.size(count) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, ""), (0.04, "0.0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3660, "1 h 01 min")],
)
def test_spans_are_worded(seconds: float | None, told: str) -> None:
    """As a person says them."""
    assert html.span(seconds) == told


def test_airflow_finds_the_plugin_and_its_views() -> None:
    """The entry point names the plugin; each view lies below the prefix that is mounted, and Airflow knows its words."""
    (found,) = entry_points(group="airflow.plugins", name="flows")
    assert found.load() is FlowsPlugin
    assert FlowsPlugin.fastapi_apps[0]["url_prefix"] == PREFIX
    from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse

    views = [ExternalViewResponse.model_validate(view) for view in FlowsPlugin.external_views]
    assert [(view.name, view.destination) for view in views] == [
        ("Flow run", "task_instance"),
        ("Flow runs", "nav"),
    ]
    assert all(view.href.startswith(f"{PREFIX[1:]}/") and view.icon and view.url_route for view in views)
    assert all(word in views[0].href for word in ("{DAG_ID}", "{RUN_ID}", "{TASK_ID}", "{MAP_INDEX}"))


def test_the_plugin_costs_a_task_two_small_modules() -> None:
    """Every task of everybody loads plugins: no FastAPI, no template and no hook comes with ours."""
    script = (
        "import json, sys\nimport airflow.sdk\nfrom airflow.providers.common.compat.sdk import AirflowPlugin, hookimpl\n"
        "before = set(sys.modules)\nimport airflow_provider_flows.plugin\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    package = "airflow_provider_flows"
    own = {f"{package}.plugin", f"{package}.plugin.listener", f"{package}.plugin.lazy_app"}
    assert {
        name for name in fresh(script) if name.startswith(f"{package}.") or name.partition(".")[0] in HEAVY
    } == own


WITHOUT = """
import asyncio, json, sys
sys.modules["airflow.api_fastapi.core_api.security"] = None  # an Airflow in which it lies elsewhere
from airflow_provider_flows.plugin import FlowsPlugin
sent = []
async def receive(): return {"type": "http.request"}
async def send(message): sent.append(message)
scope = {"type": "http", "method": "GET", "path": "/flows/", "headers": [], "query_string": b""}
for _ in range(2):
    asyncio.run(FlowsPlugin.fastapi_apps[0]["app"](dict(scope), receive, send))
print(json.dumps([[one["status"] for one in sent if "status" in one], sent[1]["body"].decode()]))
"""


def test_an_airflow_without_what_the_pages_need_is_told_so_once() -> None:
    """Where Airflow has moved its inside, the pages step aside; everything else of the provider goes on."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=60
    )
    statuses, body = json.loads(done.stdout.splitlines()[-1])
    assert statuses == [503, 503]
    assert "This version of Airflow" in body
    assert (done.stdout + done.stderr).count("need parts of Airflow") == 1
