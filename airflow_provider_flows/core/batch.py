"""A batch: many flow runs of one task, one for each item; its items, and its state.

Nothing here reads a clock or does I/O. The program of the batch reports what happens to each item, and asks
for the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from airflow_provider_flows.core.exceptions import FlowInputError, FlowRunAborted
from airflow_provider_flows.core.safe_text import to_plain_name

MANIFEST_NAME = "manifest.jsonl"
FAILED_ITEMS_NAME = "failed.jsonl"
MAX_KEY_LENGTH = 100  # characters of a file name
MAX_LISTED_PROBLEMS = 20  # in one error
ITEM_FIELDS = ("key", "inputs", "parameters", "additional")
MAX_FETCHING_ITEMS = 64  # beyond them no run is started, so that completed runs do not pile up
ROUNDING_ERROR = 1e-9
SECONDS_PER_MINUTE, SECONDS_PER_HOUR = 60, 3600
# The caller asks every few seconds, so that it is at most half a minute and a minute.
LOG_SECONDS = 25.0  # between two lines about the progress
MANIFEST_SECONDS = 50.0  # between two versions of the manifest
_RESERVED_KEYS = frozenset({MANIFEST_NAME, FAILED_ITEMS_NAME})  # the files beside the folders of the items


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One item of a batch, for which a flow run is started.

    :param key: the item's name, which is also that of its folder; unique in the batch.
    :param row: the number of the item in its source, from 1; in a CSV or JSONL file that of its line.
    :param inputs: as those of `RunFlowOperator`, and so are the other fields.
    """

    key: str
    row: int
    inputs: Any = field(repr=False)  # content never reaches a log
    parameters: Mapping[str, Any] | None = field(default=None, repr=False)
    additional: Any = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the form in which `items` takes an item, without the row."""
        return {name: getattr(self, name) for name in ITEM_FIELDS}


@dataclass(frozen=True, slots=True)
class ItemProblem:
    """An item that cannot be sent, and why.

    :param row: as that of a `BatchItem`.
    :param key: the item's name, None if it has none that can be used.
    :param message: does not contain the item's content.
    :param item: what could be read of the item, in the form that `items` takes; None if it could not be
        parsed at all.
    """

    row: int
    key: str | None
    message: str
    item: Mapping[str, Any] | None = field(default=None, repr=False)


class ProblemList:
    """The first problems of a batch, and the number of all; false while there are none."""

    def __init__(self) -> None:
        self.first: list[ItemProblem] = []
        self.count = 0

    def __len__(self) -> int:
        """Return the number of problems."""
        return self.count

    def add(self, problem: ItemProblem) -> None:
        """Add a problem."""
        self.count += 1
        if len(self.first) < MAX_LISTED_PROBLEMS:
            self.first.append(problem)

    def error(self, row_name: str) -> FlowInputError:
        """Return one exception with the problems.

        :param row_name: what the number of an item is, such as "line".
        """
        listed = "; ".join(
            f"{row_name} {problem.row}: {problem.message.removesuffix('.')}" for problem in self.first
        )
        more = f"; and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        noun = "one item" if self.count == 1 else f"{self.count:,} items"
        return FlowInputError(
            f"items has {noun} that cannot be sent: {listed}{more}. No flow run was created. Correct the "
            'items, or set validate="skip" to run the other items'
        )


def find_key_problem(key: str) -> str | None:
    """Return why a text cannot be the key of an item, None if it can."""
    if len(key) > MAX_KEY_LENGTH:
        return f"its key has {len(key)} characters, more than {MAX_KEY_LENGTH}"
    plain = to_plain_name(key, MAX_KEY_LENGTH)
    if key.lower() in _RESERVED_KEYS:
        return f"its key {key!r} is the name of a file of the batch itself"
    if plain == key and key:
        return None
    example = f", such as {plain!r}" if plain else ""
    return (
        f"its key {key!r} is not a safe file name of letters, digits, dots, dashes and underscores{example}"
    )


class ItemState(StrEnum):
    """Every state of an item of a batch."""

    PENDING = "pending"
    """Its flow run was not started."""
    ACTIVE = "active"
    """Its flow run is being started, or is active at the service."""
    FETCHING = "fetching"
    """Its flow run has completed, and its outputs are being fetched."""
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    INVALID = "invalid"
    """It cannot be sent."""

    @classmethod
    def after_error(cls, error: Exception) -> ItemState:
        """Return the state of an item that an error has ended."""
        return cls.ABORTED if isinstance(error, FlowRunAborted) else cls.FAILED


# of an item's state, within one part of a try; an item in the last four states has ended
TRANSITIONS: Mapping[ItemState, frozenset[ItemState]] = {
    ItemState.PENDING: frozenset({ItemState.ACTIVE}),
    ItemState.ACTIVE: frozenset(
        {ItemState.PENDING, ItemState.FETCHING, ItemState.FAILED, ItemState.ABORTED}
    ),  # pending: its start was rejected for a reason that ends the batch
    ItemState.FETCHING: frozenset(
        {ItemState.PENDING, ItemState.COMPLETED, ItemState.FAILED}
    ),  # pending: its outputs were rejected, and another run replaces its run
    ItemState.COMPLETED: frozenset(),
    ItemState.FAILED: frozenset(),
    ItemState.ABORTED: frozenset(),
    ItemState.INVALID: frozenset(),
}


class Step(Enum):
    """What the program of a batch does next."""

    START = auto()
    """Start the run of the next item."""
    WAIT = auto()
    """Wait until the state of an item has changed."""
    END = auto()
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When a batch starts runs, and when its task fails.

    :param max_active_runs: how many flow runs are active at the service at the same time.
    :param min_success_ratio: the task fails if a smaller part of its items completes, 0.0 to 1.0. Items that
        cannot be sent do not count.
    :param stop_after_failures: after so many failed runs in a row, no other run is started; None for any
        number.
    :param item_retries: how often a failed item is run again within one try of the task.
    :param check_retries: how often an item is run again whose outputs are rejected, in all tries.
    :raises FlowInputError: a value is not valid.
    """

    max_active_runs: int = 50
    min_success_ratio: float = 1.0
    stop_after_failures: int | None = 20
    item_retries: int = 0
    check_retries: int = 0

    def __post_init__(self) -> None:
        """Validate the values."""
        _require_count("max_active_runs", self.max_active_runs, 1)
        _require_count("item_retries", self.item_retries, 0)
        if self.stop_after_failures is not None:
            _require_count("stop_after_failures", self.stop_after_failures, 1)
        ratio = self.min_success_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise FlowInputError(f"min_success_ratio must be a number from 0.0 to 1.0, not {ratio!r}")


def _require_count(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise FlowInputError(f"{name} must be an integer of at least {minimum}, not {value!r}")


class BatchState:
    """How many items of a batch are in which state, and whether other runs are started.

    :param policy: of the batch.
    :param failures_in_row: how many runs have failed since the last one that completed, so far.
    """

    def __init__(self, policy: BatchPolicy, failures_in_row: int = 0) -> None:
        self.policy = policy
        self.counts = dict.fromkeys(ItemState, 0)
        self.failures_in_row = failures_in_row
        self.reused = 0
        """How many completed items have the outputs of an earlier run of the same request."""
        self.rejected = 0
        """How many failed items have outputs that the task's checks have rejected for good."""
        self.deferred = 0
        """How many active items are left to a trigger."""
        self.has_more = True
        """Whether there are items that were not taken yet."""
        self.stop_reason: str | None = None
        """Why no other run is started, None while there is no reason."""
        self._stop_if_failing()

    @property
    def total(self) -> int:
        """The number of items."""
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        """The number of items that have ended."""
        return sum(count for state, count in self.counts.items() if not TRANSITIONS[state])

    def add(self, state: ItemState) -> None:
        """Count an item that the batch has."""
        self.counts[state] += 1

    def move(self, old: ItemState, new: ItemState) -> None:
        """Record that an item has changed its state.

        :raises ValueError: an item cannot change its state so.
        """
        if new not in TRANSITIONS[old] or not self.counts[old]:
            raise ValueError(f"an item of a batch cannot change from {old} to {new}")
        self.counts[old] -= 1
        self.counts[new] += 1
        if new is ItemState.COMPLETED:
            self.failures_in_row = 0

    def stop(self, reason: str) -> None:
        """Start no other run; those that are active continue. The first reason counts."""
        self.stop_reason = self.stop_reason or reason

    def record_failure(self) -> None:
        """Record that a run has failed, could not be started, or left outputs that could not be fetched."""
        self.failures_in_row += 1
        self._stop_if_failing()

    def _stop_if_failing(self) -> None:
        limit = self.policy.stop_after_failures
        if limit is not None and self.failures_in_row >= limit:
            self.stop(f"{self.failures_in_row} flow runs have failed in a row (stop_after_failures)")

    def may_repeat(self, failures: int) -> bool:
        """Return whether a failed item is run again.

        :param failures: how often it has failed in this try of the task.
        """
        return self.stop_reason is None and failures <= self.policy.item_retries

    def may_replace(self, rejections: int) -> bool:
        """Return whether another run replaces one whose outputs were rejected.

        :param rejections: how many runs of the item were rejected.
        """
        return self.stop_reason is None and rejections <= self.policy.check_retries

    @property
    def is_left_to_trigger(self) -> bool:
        """Whether nothing is left to do here, but to start other runs."""
        return self.counts[ItemState.ACTIVE] + self.counts[ItemState.FETCHING] <= self.deferred

    def next_step(self) -> Step:
        """Return what to do next."""
        active, fetching = self.counts[ItemState.ACTIVE], self.counts[ItemState.FETCHING]
        has_room = active < self.policy.max_active_runs and fetching < MAX_FETCHING_ITEMS
        if self.has_more and has_room and self.stop_reason is None:
            return Step.START
        return Step.END if self.is_left_to_trigger else Step.WAIT

    @property
    def has_only_rejections(self) -> bool:
        """Whether each failed item was rejected by the checks, so that another try would find the same."""
        failed = self.counts[ItemState.FAILED] + self.counts[ItemState.ABORTED]
        return 0 < self.rejected == failed

    def find_failure(self) -> str | None:
        """Return why the task fails, after everything has been tried; None if it succeeds."""
        valid = self.total - self.counts[ItemState.INVALID]
        completed = self.counts[ItemState.COMPLETED]
        is_stopped = self.stop_reason is not None and self.counts[ItemState.PENDING] > 0
        if completed >= self.policy.min_success_ratio * valid - ROUNDING_ERROR and not is_stopped:
            return None
        share = f"{completed:,} of {valid:,} items have completed"
        if self.rejected:
            share += f" (the outputs of {self.rejected:,} do not satisfy check_outputs)"
        if self.stop_reason is not None:
            return f"{share}, and the batch was stopped: {self.stop_reason}"
        return f"{share}, less than min_success_ratio ({self.policy.min_success_ratio:g})"

    def to_result(self) -> dict[str, int]:
        """Return the counts in the dict that the task returns."""
        return {
            "total": self.total,
            "completed": self.counts[ItemState.COMPLETED],
            "failed": self.counts[ItemState.FAILED] + self.counts[ItemState.INVALID],
            "aborted": self.counts[ItemState.ABORTED],
            "reused": self.reused,
        }

    def describe(self, seconds_left: float | None = None) -> str:
        """Return a line about the progress of the batch.

        :param seconds_left: until the expected end, None if unknown.
        """
        result = self.to_result()
        parts = [f"{result['completed']:,} of {result['total']:,} completed"]
        parts += [f"{result[name]:,} {name}" for name in ("failed", "aborted", "reused") if result[name]]
        busy = (ItemState.ACTIVE, ItemState.FETCHING)
        parts += [f"{self.counts[state]:,} {state}" for state in busy if self.counts[state]]
        end = "" if seconds_left is None else f"; about {format_duration(seconds_left)} left"
        return ", ".join(parts) + end

    def estimate_seconds_left(self, ended: int, seconds: float) -> float | None:
        """Return the seconds until the expected end, None if unknown.

        :param ended: how many items have ended recently.
        :param seconds: how long that took.
        """
        waiting = self.counts[ItemState.PENDING] if self.stop_reason is None else 0
        remaining = waiting + self.counts[ItemState.ACTIVE] + self.counts[ItemState.FETCHING]
        return remaining * seconds / ended if ended and remaining else None


class BatchProgress:
    """When the progress of a batch is logged, and when its manifest is written.

    :param state: of the batch.
    :param now: the seconds of any clock that only moves forward, and so for the methods.
    """

    def __init__(self, state: BatchState, now: float) -> None:
        self._state = state
        self._started_at = self._logged_at = self._written_at = now
        self._first_ended = state.ended
        self._logged = ""

    def describe(self, now: float) -> str:
        """Return a line about the progress, with the time until the expected end."""
        ended = self._state.ended - self._first_ended
        return self._state.describe(self._state.estimate_seconds_left(ended, now - self._started_at))

    def take_line(self, now: float) -> str | None:
        """Return the line that is to be logged now; None if it is too early, or if nothing has changed."""
        text = self._state.describe()
        if now - self._logged_at < LOG_SECONDS or text == self._logged:
            return None
        self._logged, self._logged_at = text, now
        return self.describe(now)

    def is_manifest_due(self, now: float) -> bool:
        """Return whether the manifest is to be written now."""
        if now - self._written_at < MANIFEST_SECONDS:
            return False
        self._written_at = now
        return True


def format_duration(seconds: float) -> str:
    """Return a duration in words, in hours and minutes, or in seconds if it is short."""
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / SECONDS_PER_MINUTE)
    hours, rest = divmod(minutes, SECONDS_PER_HOUR // SECONDS_PER_MINUTE)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"


def is_repeatable(error: Exception) -> bool:
    """Return whether it makes sense to run an item again after an error: it is not one of the item itself."""
    return not (isinstance(error, FlowInputError) and error.is_permanent)
