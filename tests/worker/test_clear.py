"""Tests of what the next try does with the flow run of an earlier one, after a retry and after a Clear.

The operator runs as in a worker, with a stub of Airflow's task instance; complete Airflows run in
tests/system/chaos.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_flows.core.exceptions import FlowError, FlowServiceError, FlowTimeout, FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request, Sleep, T
from airflow_provider_flows.core.start_or_resume import STAMP_KEY, add_stamp
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.run_tracking import STAMPED_ATTRIBUTES
from airflow_provider_flows.worker.task_state import FILES_KEY, PREVIOUS_RUNS_KEY, RECORD_KEY
from airflow_provider_flows.worker.task_try import abort_on_error
from tests.support.modes import FLOW
from tests.support.task_instances import AIRFLOW_KINDS, WITH_STORE, AirflowKind, Store, context
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, request_times, run_states

DELETES, NO_STORE = AIRFLOW_KINDS["store that a Clear empties"], AIRFLOW_KINDS["no store"]

pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)
INSTANT_RUNS = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


# Which run the next try has
# --------------------------------------------------------------------------------------------------


def _skip_sleeps(conversation: Conversation[T]) -> Conversation[T]:
    """Run a conversation without its pauses: a run that is gone is searched for 30 seconds."""
    reply: Any = None
    error: Exception | None = None
    while True:
        try:
            step: Request | Sleep = conversation.send(reply) if error is None else conversation.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # a generator's value is untyped here
        reply, error = None, None
        if not isinstance(step, Sleep):
            try:
                reply = yield step
            except (FlowServiceError, FlowUnreachable) as raised:
                error = raised


class HurriedHook(GenerioHook):
    """The hook of Generio, without pauses."""

    def run(self, conversation: Conversation[T], **arguments: Any) -> T:
        """Run a conversation."""
        return super().run(_skip_sleeps(conversation), **arguments)


class HurriedOperator(RunFlowOperator):
    """The operator with that hook."""

    def _get_hook(self, conn_id: str) -> HurriedHook:
        return HurriedHook(conn_id)


class Try:
    """A sequence of tries of one task, on one kind of Airflow."""

    def __init__(self, kind: AirflowKind, **arguments: Any) -> None:
        self.kind = kind
        self.store = Store()
        self.arguments: dict[str, Any] = {
            **CHAIR_ARGUMENTS,
            "poll_interval": 0.1,
            "wait_for_completion": False,
            **arguments,
        }

    def context(self, try_number: int, max_tries: int = 1, **more: Any) -> Any:
        """Return the context of a try."""
        return context(self.store, try_number, max_tries, kind=self.kind, **more)

    def execute(self, try_number: int, max_tries: int = 1, *, clear_number: int = 0, **changes: Any) -> Any:
        """Execute a try."""
        operator = HurriedOperator(task_id="t", **{**self.arguments, **changes})
        return operator.execute(self.context(try_number, max_tries, clear_number=clear_number))

    def clear(self, *, keep: bool = False) -> None:
        """Do to the store what a Clear does."""
        if self.kind.clear_deletes_state and not keep:
            self.store.clear()


def prepare_run(emulator: Emulator, tries: Try, state: str) -> str:
    """Execute the first try, and bring its run into a state; return the id of the run."""
    emulator.add_plan(Plan(run_seconds=60, outcome="failed" if state == "failed" else "completed"))
    if state == "created":
        emulator.add_fault(Fault("PATCH", "/flows/*", status=503, times=2))
        with pytest.raises(FlowServiceError):
            tries.execute(1)
    else:
        tries.execute(1)
    ((flow_run_id, run),) = emulator.runs.items()
    if state in {"completed", "failed", "gone"}:
        emulator.advance(100)
    if state == "gone":
        GenerioHook("generio_default").delete(flow_run_id)
    else:
        assert run.state in ({"starting", "running"} if state == "active" else {state})
    return flow_run_id


RESUMED = {"active": "resumed", "completed": "resumed", "created": "gone", "failed": "failed", "gone": "gone"}
"""What becomes of a run, by its state, if the next try wants it. Else the try starts a new one."""
NOT_RESUMED = {**RESUMED, "active": "aborted", "completed": "completed"}
"""The same, if the next try wants a new run."""
EVENTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "retry": ({"try_number": 2}, RESUMED),
    "Clear": ({"try_number": 2, "max_tries": 2}, NOT_RESUMED),
    "Clear with state kept": ({"try_number": 2, "max_tries": 2}, RESUMED),
    "arguments changed": ({"try_number": 2, "inputs": "A table"}, NOT_RESUMED),
    "DAG run cleared": ({"try_number": 1, "max_tries": 2, "clear_number": 1}, NOT_RESUMED),
}
"""How the next try comes about: its arguments, and what becomes of the earlier run."""


@pytest.mark.parametrize("state", RESUMED)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kind", AIRFLOW_KINDS)
def test_next_try_resumes_a_wanted_run_and_ends_any_other(
    emulator: Emulator, kind: str, event: str, state: str
) -> None:
    """On any Airflow a retry resumes, a Clear starts a new run, and no earlier run stays active."""
    if event == "Clear with state kept" and not AIRFLOW_KINDS[kind].clear_deletes_state:
        event = "Clear"  # no other Airflow has the choice
    tries = Try(AIRFLOW_KINDS[kind])
    arguments, outcomes = EVENTS[event]
    flow_run_id = prepare_run(emulator, tries, state)
    started = emulator.started_count
    if event in {"Clear", "DAG run cleared"}:
        tries.clear()

    returned = tries.execute(**arguments)

    outcome = outcomes[state]
    assert (returned["flow_run_id"] == flow_run_id) == (outcome == "resumed")
    assert emulator.started_count - started == (outcome != "resumed")
    remaining = emulator.runs.get(flow_run_id)
    if outcome == "gone":
        assert remaining is None
    elif outcome != "resumed":
        assert remaining is not None
        assert remaining.state == outcome
    if tries.kind.has_store:  # for the try after it, also a deferred one
        record = tries.store[RECORD_KEY]
        assert (record["flow_run_id"], record["generation"]) == (
            returned["flow_run_id"],
            arguments.get("max_tries", 1),
        )


@pytest.mark.parametrize("kind", AIRFLOW_KINDS)
def test_first_try_sends_no_request_for_earlier_runs(emulator: Emulator, kind: str) -> None:
    """A first try of a DAG run that was not cleared searches for nothing; the first in a cleared one does."""
    tries = Try(AIRFLOW_KINDS[kind])
    tries.execute(1)
    assert request_times(emulator, "GET", "/flows") == []
    tries.execute(1, clear_number=1)
    assert len(request_times(emulator, "GET", "/flows")) == (not tries.kind.has_store)


@pytest.mark.parametrize("keep", [True, False])
def test_earlier_run_is_in_the_list_of_previous_runs(emulator: Emulator, *, keep: bool) -> None:
    """The run from before a Clear that emptied the store is still shown in the UI."""
    tries = Try(DELETES)
    flow_run_id = prepare_run(emulator, tries, "failed")
    tries.clear(keep=keep)
    tries.execute(2, 2)
    assert tries.store[PREVIOUS_RUNS_KEY] == [{"flow_run_id": flow_run_id, "last_try": 1}]


@pytest.mark.parametrize("kind", AIRFLOW_KINDS)
@pytest.mark.parametrize("abort_on_kill", [True, False])
def test_run_from_before_a_clear_continues_if_aborts_are_disabled(
    emulator: Emulator, kind: str, *, abort_on_kill: bool
) -> None:
    """With abort_on_kill=False, nothing is aborted, whichever way the run was found."""
    tries = Try(AIRFLOW_KINDS[kind], abort_on_kill=abort_on_kill)
    prepare_run(emulator, tries, "active")
    tries.clear()
    tries.execute(2, 2)
    assert (run_states(emulator)[0] == "aborted") is abort_on_kill
    assert emulator.started_count == 2


def test_other_backend_of_the_store_is_not_emptied(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow empties its own store only. With another backend a Clear starts a new run nevertheless."""
    monkeypatch.setenv("AIRFLOW__STATE_STORE__BACKEND", "my.Backend")
    tries = Try(DELETES)
    prepare_run(emulator, tries, "active")
    tries.clear(keep=True)  # which the person did not ask for
    tries.execute(2, 2)
    assert (run_states(emulator)[0], emulator.started_count) == ("aborted", 2)


# Deadlines
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AIRFLOW_KINDS)
def test_retry_has_the_deadline_of_the_first_try(emulator: Emulator, kind: str) -> None:
    """The deadline is that of the first start, from the record or the stamp."""
    tries = Try(AIRFLOW_KINDS[kind], timeout=1.5)
    prepare_run(emulator, tries, "active")
    started_at = time.time()
    with pytest.raises(FlowTimeout):
        tries.execute(2, timeout=3600, wait_for_completion=True)
    assert time.time() - started_at < 60
    assert emulator.started_count == 1


@pytest.mark.parametrize(("timeout", "is_new"), [(0.0, True), (600.0, False)])
def test_kept_state_has_a_new_deadline_if_the_old_one_has_passed(
    emulator: Emulator, timeout: float, *, is_new: bool
) -> None:
    """A person who clears a task and keeps its state does not get an error because of the old deadline."""
    tries = Try(DELETES, timeout=3600)
    prepare_run(emulator, tries, "active")
    tries.store[RECORD_KEY]["deadline"] = old = time.time() + timeout
    tries.clear(keep=True)
    tries.execute(2, 2)
    saved = tries.store[RECORD_KEY]["deadline"]
    assert (saved > old + 60) if is_new else (saved == old)
    tries.execute(3, 2)  # a retry has it as well
    assert (tries.store[RECORD_KEY]["deadline"], emulator.started_count) == (saved, 1)


def test_log_says_how_to_start_a_new_run(emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """A person may not know that the state was kept: the Clear of a complete DAG run has no choice."""
    tries = Try(DELETES)
    flow_run_id = prepare_run(emulator, tries, "active")
    tries.clear(keep=True)
    tries.execute(2, 2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "with its state kept" in line]
    assert f"resuming flow run {flow_run_id}" in line
    assert "clear the task instance without keeping its state" in line


# The list of the service
# --------------------------------------------------------------------------------------------------


def own_stamp(**changes: Any) -> dict[str, Any]:
    """Return the stamp of a run of the tests' task, in its first try."""
    own = context(Store())["ti"]
    return {name: getattr(own, name) for name in STAMPED_ATTRIBUTES} | changes


FOREIGN_STAMPS: dict[str, Any] = {
    "another task": own_stamp(task_id="u"),
    "another DAG": own_stamp(dag_id="e"),
    "another DAG run": own_stamp(run_id="s"),
    "a mapped instance": own_stamp(map_index=0),
    "an iteration of a loop": own_stamp(region_id=str(UUID(int=7)), region_index=0),
    "an iteration without an index": own_stamp(region_index=0),
    "a number as a text": own_stamp(map_index="-1"),
    "a number with a fraction": own_stamp(map_index=-1.0),
    "a list as a name": own_stamp(task_id=["t"]),
    "an object as a name": own_stamp(task_id={"t": "t"}),
    "no name": {"token": "t", "generation": 1},
    "names of null": dict.fromkeys(own_stamp()),
    "a text": "airflow",
    "a list": [own_stamp()],
    "nothing": None,
}


def start_stamped(stamp: Any) -> str:
    """Start a run with this stamp, and return its id."""
    hook = GenerioHook("generio_default")
    return hook.start(FLOW, "a chair", additional={STAMP_KEY: stamp}).flow_run_id


@pytest.mark.parametrize("paging", ["none", "offset", "page"])
def test_only_own_runs_are_touched(emulator: Emulator, paging: Any) -> None:
    """On any page of the list, runs of other tasks are left alone, whatever their stamps are."""
    tries = Try(NO_STORE)
    emulator.switches.paging, emulator.switches.page_size = paging, 4
    own_run_id = prepare_run(emulator, tries, "active")
    foreign = [start_stamped(stamp) for stamp in FOREIGN_STAMPS.values()]
    hook = GenerioHook("generio_default")
    for additional in ("text", ["list"], 7):
        run = hook.start(FLOW, "a chair", additional=additional)
        foreign.append(run.flow_run_id)

    tries.execute(2, 2)

    assert emulator.runs[own_run_id].state == "aborted"
    touched = {
        request.path.split("/")[2] for request in emulator.requests if request.method in {"PATCH", "DELETE"}
    }
    assert touched.isdisjoint(foreign)
    assert {emulator.runs[flow_run_id].state for flow_run_id in foreign} <= {"starting", "running"}


UNREADABLE_RECORDS: dict[str, dict[str, Any]] = {
    "of an older version": {},
    "with a text as generation": {"generation": "1", "fingerprint": "f", "token": "t"},
    "with a list as fingerprint": {"generation": 1, "fingerprint": [], "token": "t"},
    "with an object as token": {"generation": 1, "fingerprint": "f", "token": {}},
    "with a text as deadline": {"generation": 1, "fingerprint": "f", "token": "t", "deadline": "soon"},
    "with a huge deadline": {"generation": 1, "fingerprint": "f", "token": "t", "deadline": 10**400},
}


@pytest.mark.parametrize("name", UNREADABLE_RECORDS)
def test_own_run_with_an_unreadable_stamp_is_aborted(emulator: Emulator, name: str) -> None:
    """A run that names the task instance and nothing that allows to resume it does not stay active."""
    start_stamped(own_stamp(**UNREADABLE_RECORDS[name]))
    Try(NO_STORE).execute(2)
    assert (run_states(emulator)[0], emulator.started_count) == ("aborted", 2)


def test_all_other_runs_of_the_task_are_ended(emulator: Emulator) -> None:
    """The newest wanted run is resumed, all other active ones are aborted, and created ones are deleted."""
    tries = Try(NO_STORE)
    wanted = prepare_run(emulator, tries, "active")
    stamp = emulator.runs[wanted].additional[STAMP_KEY]
    older = [start_stamped({**stamp, "generation": 0, "token": str(number)}) for number in range(2)]
    hook = GenerioHook("generio_default")
    lost = hook.run(hook.service.create(FLOW, {"quality": "low"}, add_stamp(None, own_stamp(token="lost"))))

    returned = tries.execute(2)

    assert returned["flow_run_id"] == wanted
    assert [emulator.runs[flow_run_id].state for flow_run_id in older] == ["aborted", "aborted"]
    assert lost.flow_run_id not in emulator.runs


@pytest.mark.parametrize("kind", ["store that a Clear empties", "no store"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "/flows", status=503, times=None),
        Fault("GET", "/flows", status=404, times=None),
        Fault("GET", "/flows", body=b"[", times=None),
    ],
    ids=["unavailable", "no list", "unreadable"],
)
def test_without_a_list_the_next_try_starts_a_new_run(
    emulator: Emulator, capsys: pytest.CaptureFixture[str], kind: str, fault: Fault
) -> None:
    """One line of the log says that an earlier run may continue."""
    tries = Try(AIRFLOW_KINDS[kind])
    prepare_run(emulator, tries, "active")
    tries.clear()
    emulator.add_fault(fault)
    tries.execute(2, 2)
    assert emulator.started_count == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "No record of an earlier try" in line]
    assert "[warning" in line
    assert "cannot be searched" in line


def test_run_that_cannot_be_aborted_is_a_warning(
    emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier run whose abort fails does not prevent that the wanted one is resumed."""
    tries = Try(NO_STORE)
    wanted = prepare_run(emulator, tries, "active")
    other = start_stamped(own_stamp())
    emulator.add_fault(Fault("PATCH", f"/flows/{other}", status=500, times=None))
    assert tries.execute(2)["flow_run_id"] == wanted
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "could not be aborted" in line]
    assert other in line


# A try that fails without a store
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "switches", "is_left"),
    [
        ({}, {}, True),
        ({"additional": ["no mapping"]}, {}, False),
        ({}, {"list_endpoint": 404}, False),
        ({}, {"filter_by": "fields_only"}, True),
    ],
    ids=["listed", "no stamp", "no list", "fields"],
)
def test_run_of_a_failing_try_is_left_to_the_retry_if_it_is_listed(
    emulator: Emulator, arguments: dict[str, Any], switches: dict[str, Any], *, is_left: bool
) -> None:
    """Without a store, a failing try aborts its active run, unless the retry will find it."""
    for name, value in switches.items():
        setattr(emulator.switches, name, value)
    tries = Try(NO_STORE, wait_for_completion=True, **arguments)
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    with pytest.raises(FlowServiceError):
        tries.execute(1)
    (flow_run_id,) = emulator.runs
    assert (emulator.runs[flow_run_id].state != "aborted") is is_left
    returned = tries.execute(2, wait_for_completion=False)
    assert (returned["flow_run_id"] == flow_run_id) is is_left


# PromptChainer, which lists no runs, and whose responses are saved
# --------------------------------------------------------------------------------------------------

PLACES = {"the record": 65_535, "parts": 600}
"""Where a response is saved, and the size of a value."""


@INSTANT_RUNS
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kind", "event", "is_resumed"),
    [
        ("store that a Clear empties", "retry", True),
        ("store that a Clear empties", "Clear", False),
        ("store that a Clear empties", "Clear with state kept", True),
        ("store", "retry", True),
        ("store", "Clear", False),
        ("no store", "retry", False),
        ("no store", "Clear", False),
    ],
)
def test_saved_response_follows_the_same_rule(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    place: str,
    kind: str,
    event: str,
    is_resumed: bool,
) -> None:
    """A response that is paid for is used again by a retry, and after a Clear that keeps it."""
    monkeypatch.setenv("AIRFLOW__STATE_STORE__MAX_VALUE_STORAGE_BYTES", str(PLACES[place]))
    tries = Try(AIRFLOW_KINDS[kind])
    arguments = {**CHAIN_ARGUMENTS, "output_path": str(tmp_path)}
    emulator.add_fault(Fault("GET", "*.png", status=500))
    with pytest.raises(FlowServiceError):
        RunFlowOperator(task_id="t", **arguments).execute(tries.context(1))
    assert (f"{RECORD_KEY}_part_" in str(tries.store)) == (place == "parts" and tries.kind.has_store)
    if event == "Clear":
        tries.clear()
    returned = RunFlowOperator(task_id="t", **arguments).execute(
        tries.context(2, 1 if event == "retry" else 2)
    )
    assert [output["status"] for output in returned["outputs"]] == ["ready", "ready"]
    assert emulator.started_count == (1 if is_resumed else 2)


@INSTANT_RUNS
@pytest.mark.parametrize("keep", [True, False])
def test_response_in_a_file_follows_the_same_rule(emulator: Emulator, tmp_path: Path, *, keep: bool) -> None:
    """A response that only fitted into a file is found after a Clear that keeps the record."""

    class RejectingStore(Store):
        def set(self, key: str, value: Any) -> None:
            if self:
                raise RuntimeError("the API server is away")
            super().set(key, value)

    tries = Try(DELETES)
    tries.store = RejectingStore()
    arguments = {**CHAIN_ARGUMENTS, "output_path": str(tmp_path)}
    emulator.add_fault(Fault("GET", "*.png", status=500))
    with pytest.raises(FlowServiceError):
        RunFlowOperator(task_id="t", **arguments).execute(tries.context(1))
    kept = dict(tries.store) if keep else {}
    tries.store = Store(kept)
    RunFlowOperator(task_id="t", **arguments).execute(tries.context(2, 2))
    assert emulator.started_count == (1 if keep else 2)


@INSTANT_RUNS
@pytest.mark.parametrize("keep", [True, False])
def test_stored_files_follow_the_same_rule(emulator: Emulator, tmp_path: Path, *, keep: bool) -> None:
    """After a Clear that keeps the state, files that are stored already are not downloaded again."""
    tries = Try(DELETES, wait_for_completion=True, output_path=str(tmp_path))
    first = tries.execute(1)
    assert FILES_KEY in tries.store
    downloads = len([sent for sent in emulator.requests if "/outputs/" in sent.path])
    tries.clear(keep=keep)
    second = tries.execute(2, 2)
    assert (second["flow_run_id"] == first["flow_run_id"]) is keep
    repeated = len([sent for sent in emulator.requests if "/outputs/" in sent.path]) - downloads
    assert repeated == (0 if keep else downloads)


# A running task that is cleared
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "keep", "is_aborted"),
    [
        ("store that a Clear empties", False, True),
        ("store that a Clear empties", True, False),
        ("store", False, True),
        ("no store", False, True),
    ],
)
def test_clear_of_a_running_task_aborts_its_run_unless_the_state_is_kept(
    emulator: Emulator, kind: str, *, keep: bool, is_aborted: bool
) -> None:
    """The worker aborts the run at once if the state is gone, and else ends its try and leaves the run."""
    tries = Try(AIRFLOW_KINDS[kind])
    operator = HurriedOperator(task_id="t", **tries.arguments)
    operator.execute(tries.context(1, state="restarting"))
    tries.clear(keep=keep)
    with nullcontext() if is_aborted else pytest.raises(FlowError, match="the next one resumes flow run"):
        operator.on_kill()
    assert run_states(emulator) == (["aborted"] if is_aborted else ["starting"])
    returned = tries.execute(2, 2)
    assert (returned["flow_run_id"] in list(emulator.runs)[:1]) is not is_aborted


@pytest.mark.parametrize(
    ("kind", "max_tries", "error", "state"),
    [
        pytest.param("no store", 1, LookupError(), "aborted", id="last try"),
        pytest.param("no store", 2, LookupError(), "starting", id="a try is left"),
        pytest.param("no store", 2, AirflowFailException(), "aborted", id="no try follows the error"),
        pytest.param("store", 1, LookupError(), "aborted", id="last try with a record"),
        pytest.param("store", 2, LookupError(), "starting", id="a try is left with a record"),
    ],
)
def test_error_before_the_run_is_found_aborts_it_unless_a_try_is_left(
    emulator: Emulator, kind: str, max_tries: int, error: Exception, state: str
) -> None:
    """An error before a try has its run, as of a function, leaves no run of an earlier try active."""
    tries = Try(AIRFLOW_KINDS[kind])
    tries.execute(1, max_tries)
    operator = HurriedOperator(task_id="t", **tries.arguments)
    task_try = operator._create_task_try(tries.context(2, max_tries))
    with pytest.raises(type(error)), abort_on_error(task_try):
        raise error
    assert run_states(emulator) == [state]


@INSTANT_RUNS
@pytest.mark.usefixtures("emulator")
def test_try_that_was_cleared_saves_nothing_more(tmp_path: Path) -> None:
    """A response that arrives after a Clear has emptied the store must not be taken for a kept one."""
    tries = Try(DELETES)
    arguments = {**CHAIN_ARGUMENTS, "output_path": str(tmp_path)}
    operator = RunFlowOperator(task_id="t", **arguments)
    first = tries.context(1, state="restarting")
    read_states = first["ti"].get_task_states

    class ClearedStore(Store):
        def set(self, key: str, value: Any) -> None:
            super().set(key, value)
            if len(self) == 1 and not value.get("flow_run_id"):  # right before the request
                self.clear()
                operator.on_kill()

    assert read_states()["r"] == {"t": "restarting"}
    tries.store = first["task_state_store"] = ClearedStore()
    with pytest.raises(Exception, match="was killed during the start"):
        operator.execute(first)
    assert RECORD_KEY not in tries.store


def test_kinds_of_airflow_differ_as_the_package_detects_it() -> None:
    """The stubs of the tests have what the package detects a feature by."""
    from airflow_provider_flows.compat import clear_deletes_task_state

    for kind in AIRFLOW_KINDS.values():
        stub = context(Store(), kind=kind)
        assert clear_deletes_task_state(stub["ti"]) == kind.clear_deletes_state
        assert ("task_state_store" in stub) == kind.has_store
    assert WITH_STORE in AIRFLOW_KINDS.values()
