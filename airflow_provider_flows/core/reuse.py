"""Reuse of an earlier flow run's outputs for the same request: the fingerprint, the entry, the decision.

An entry has digests of the request, and neither its inputs nor a credential. It has what the task returned.
Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
    from airflow_provider_flows.core.start_or_resume import RunRequest

VERSION = 1  # of an entry; those of other versions are not used
STAMP_FIELD = "reuse_fingerprint"  # in the stamp of a batch's run
MAX_CLOCK_DIFFERENCE_SECONDS = 300.0  # between two workers
UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"))  # in seconds
_SHA256 = re.compile("[0-9a-f]{64}")


def to_max_age(reuse: Any) -> float | None:
    """Return the maximum age of reused outputs, in seconds; infinity for any age, None for no reuse.

    :param reuse: the argument `reuse` of a task: a timedelta, True for any age, or False.
    :raises FlowInputError: it is anything else.
    """
    if reuse is None or reuse is False:
        return None
    if reuse is True:
        return math.inf
    if not isinstance(reuse, timedelta):
        raise FlowInputError(
            "reuse must be a timedelta such as timedelta(days=30), True for outputs of any age, or False, "
            f"not {reuse!r}"
        )
    if reuse <= timedelta(0):
        raise FlowInputError(f"reuse must be a timedelta of more than 0 seconds, not {reuse!r}")
    return reuse.total_seconds()


def is_fingerprint(value: Any) -> bool:
    """Return whether a value is a SHA-256 in hexadecimal, which is also a safe file name."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def compute_fingerprint(service: str, host: str, request: RunRequest) -> str:
    """Return the SHA-256 of what determines the outputs of a run, in hexadecimal.

    It includes the metadata of each input, which is that of the outputs, too, but not the metadata of the
    run. A file counts by its content.

    :param service: the name of the service.
    :param host: the base URL of the connection.
    """
    content = replace(request, additional=None).fingerprint
    return hashlib.sha256(json.dumps([VERSION, service, host, content]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ReuseLookup:
    """A lookup of a request in an index, whose outputs are to be added to it if they have to be produced.

    :param fingerprint: of the request.
    :param looked_up_at: epoch seconds.
    """

    fingerprint: str
    looked_up_at: float

    def to_list(self) -> list[Any]:
        """Return the values as plain JSON, for the arguments of a trigger."""
        return [self.fingerprint, self.looked_up_at]

    @classmethod
    def from_list(cls, values: Any) -> Self | None:
        """Return the lookup that `to_list` wrote, None for anything else."""
        if not isinstance(values, list) or len(values) != 2 or not is_fingerprint(values[0]):
            return None
        is_number = isinstance(values[1], int | float) and math.isfinite(values[1])
        return cls(values[0], float(values[1])) if is_number else None


@dataclass(frozen=True, slots=True)
class ReuseEntry:
    """An entry of an index: the outputs of a completed run, by the fingerprint of its request.

    :param saved_at: when the entry was written, in epoch seconds.
    :param run: with its outputs as its task returned them.
    """

    fingerprint: str
    saved_at: float
    run: FlowRun

    def to_json(self) -> str:
        """Return the content of the entry's file."""
        data = {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "saved_at": self.saved_at,
            "run": without_verdicts(self.run).to_record(),
        }
        return json.dumps(data)

    @classmethod
    def from_json(cls, content: bytes, fingerprint: str) -> Self | None:
        """Return the entry that `to_json` wrote for a request; None for anything else.

        :param fingerprint: of the request.
        """
        from airflow_provider_flows.core.flow_run import FlowRun  # defining a task stays cheap

        try:
            data = json.loads(content)
            is_of_request = (data["version"], data["fingerprint"]) == (VERSION, fingerprint)
            saved_at, run = float(data["saved_at"]), FlowRun.from_record(data["run"])
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, FlowError):
            return None
        is_valid = is_of_request and math.isfinite(saved_at) and find_obstacle(run) is None
        return cls(fingerprint, saved_at, without_verdicts(run)) if is_valid else None

    def find_age_problem(self, max_age: float, now: float) -> str | None:
        """Return why the entry is too old, None if it is not.

        :param max_age: seconds.
        :param now: epoch seconds.
        """
        age = now - self.saved_at
        if age > max_age:
            return f"it was saved {format_age(age)} ago, and reuse allows {format_age(max_age)}"
        return "it was saved in the future" if age < -MAX_CLOCK_DIFFERENCE_SECONDS else None

    def is_from_meanwhile(self, lookup: ReuseLookup, run: FlowRun) -> bool:
        """Return whether another task has run the same request between a lookup and the end of its run."""
        return self.run.flow_run_id != run.flow_run_id and self.saved_at >= lookup.looked_up_at

    def to_summary(self) -> Mapping[str, Any]:
        """Return what a list of entries shows."""
        return {
            "fingerprint": self.fingerprint,
            "flow": self.run.flow,
            "service": self.run.service,
            "flow_run_id": self.run.flow_run_id,
            "outputs": len(self.run.outputs),
            "size": sum(output.size or 0 for output in self.run.outputs),
        }


def without_verdicts(run: FlowRun) -> FlowRun:
    """Return a run without the verdicts of a task's checks: another task may have other checks."""
    return replace(run, verdict=None, outputs=tuple(replace(output, verdict=None) for output in run.outputs))


def find_obstacle(run: FlowRun) -> str | None:
    """Return why the outputs of a run cannot be reused, None if they can."""
    if not run.is_completed:
        return f"its state is {run.raw_state!r}"
    if not run.outputs:
        return "it has no outputs"
    problems = ((output.name, _find_output_problem(output)) for output in run.outputs)
    return next((f"its output {name} {problem}" for name, problem in problems if problem is not None), None)


def _find_output_problem(output: FlowOutput) -> str | None:
    """Return why an output cannot be reused. The types are checked, because it may be read from a file."""
    from airflow_provider_flows.core.flow_run import READY  # defining a task stays cheap

    texts = (output.asset_id, output.media_type, output.value, output.expires_at)
    if not isinstance(output.name, str) or not all(isinstance(text, str | None) for text in texts):
        return "is malformed"
    if output.status != READY or output.error:
        return "is not ready"
    if output.warning:
        return "may be unusable"
    if output.uri is not None:
        is_size = isinstance(output.size, int) and not isinstance(output.size, bool) and output.size >= 0
        is_file = isinstance(output.uri, str) and "://" in output.uri and is_size
        return None if is_file and is_fingerprint(output.sha256) else "is malformed"
    if output.value is None or output.is_url:
        return "is not stored as a file"
    return None


def format_age(seconds: float) -> str:
    """Return an age in words, in its largest unit."""
    if math.isinf(seconds):
        return "any age"
    for unit, name in UNITS:
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} seconds"
