"""Another flow run in place of one whose outputs the task's checks have rejected: which, and with which seed.

It is a part of the record of that other run (`RunRecord.check_retry`), so that one write states both that the
earlier run was rejected and which run replaces it. A later try of the task can resume the one, and does not
start it a second time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_flows.core.safe_text import to_line

if TYPE_CHECKING:
    from airflow_provider_flows.core.definition import FlowDefinition, Parameter
    from airflow_provider_flows.core.start_or_resume import RunRequest

SEED = "seed"  # the name of the parameter
MIN_SEED, MAX_SEED = 1, 2**31 - 1  # without bounds in the definition; 0 and -1 often stand for any seed
MAX_RUNS = 20  # that a record may name
MAX_SAVED_PROBLEMS = 3  # of each of them
MAX_SAVED_LENGTH = 200  # characters of a problem
INTEGER_TYPES = frozenset({"integer", "number"})


@dataclass(frozen=True, slots=True)
class CheckRetry:
    """The runs whose outputs were rejected, before the run that replaces them.

    :param rejected_runs: each with `flow_run_id`, `problems` and `is_paid`, oldest first.
    :param base: the fingerprint of the request as the task has it; empty if it is not known yet.
    :param seed: of the run that replaces them; None if the seed is not changed.
    """

    rejected_runs: tuple[Mapping[str, Any], ...]
    base: str = ""
    seed: int | None = None

    @classmethod
    def after(
        cls, earlier: CheckRetry | None, flow_run_id: str, problems: Sequence[str], *, is_paid: bool
    ) -> CheckRetry:
        """Return the state after another run was rejected, for a request that is not known yet.

        :param is_paid: whether this task has started the run; one whose outputs are reused it has not.
        """
        row = {
            "flow_run_id": flow_run_id,
            "problems": [to_line(problem)[:MAX_SAVED_LENGTH] for problem in problems[:MAX_SAVED_PROBLEMS]],
            "is_paid": is_paid,
        }
        rows = () if earlier is None else earlier.rejected_runs
        return cls((*(other for other in rows if other["flow_run_id"] != flow_run_id), row))

    def names(self, flow_run_id: str | None) -> bool:
        """Return whether a run is one of those that were rejected."""
        return any(row["flow_run_id"] == flow_run_id for row in self.rejected_runs)

    @property
    def paid_runs(self) -> int:
        """How many of the rejected runs were billed for this task."""
        return sum(row["is_paid"] is True for row in self.rejected_runs)

    def with_request(self, request: RunRequest, seed: int | None) -> CheckRetry:
        """Return the state for the request that the task has."""
        return replace(self, base=request.fingerprint, seed=seed)

    def change(self, request: RunRequest) -> RunRequest:
        """Return the request of the run that replaces the rejected ones."""
        return request if self.seed is None else set_seed(request, self.seed)

    def get_fingerprint(self, changed: RunRequest) -> str:
        """Return the fingerprint of that run: it differs from that of each earlier one.

        :param changed: what `change` has returned.
        """
        run_ids = [row["flow_run_id"] for row in self.rejected_runs]
        return hashlib.sha256(json.dumps([changed.fingerprint, run_ids]).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for a record and for a trigger."""
        return {"base": self.base, "seed": self.seed, "rejected_runs": [*map(dict, self.rejected_runs)]}

    @classmethod
    def from_dict(cls, data: Any) -> Self | None:
        """Return the state that `to_dict` wrote, None for anything else."""
        if not isinstance(data, Mapping) or not isinstance(data.get("rejected_runs"), list):
            return None
        rows = data["rejected_runs"][:MAX_RUNS]
        seed, base = data.get("seed"), data.get("base")
        are_valid = all(isinstance(row, Mapping) and isinstance(row.get("flow_run_id"), str) for row in rows)
        is_seed = seed is None or type(seed) is int
        if not rows or not are_valid or not is_seed or not isinstance(base, str):
            return None
        clean = tuple(
            {
                "flow_run_id": row["flow_run_id"],
                "problems": [str(one) for one in row.get("problems") or () if isinstance(one, str)],
                "is_paid": row.get("is_paid") is not False,
            }
            for row in rows
        )
        return cls(clean, base, seed)


def set_seed(request: RunRequest, seed: int) -> RunRequest:
    """Return a request with another seed."""
    return replace(request, parameters={**(request.parameters or {}), SEED: seed})


def has_own_seed(request: RunRequest) -> bool:
    """Return whether the author of the task has set a seed."""
    return isinstance(request.parameters, Mapping) and SEED in request.parameters


def choose_seed(request: RunRequest, definition: FlowDefinition | None, count: int) -> int | None:
    """Return another seed than that of a request; None if the flow has none, or one that is no integer.

    The same request gets the same seeds, each within the bounds of the definition.

    :param request: as the task has it.
    :param definition: of its flow, None if it is not available.
    :param count: how many runs were rejected.
    """
    documented = None if definition is None else definition.parameters.get(SEED)
    own = request.parameters[SEED] if has_own_seed(request) else None
    if own is None and documented is None:
        return None
    if own is not None and _to_integer(own) is None:
        return None
    if documented is not None and documented.types and not INTEGER_TYPES & set(documented.types):
        return None
    seeds = _get_allowed_seeds(documented)
    digest = hashlib.sha256(request.fingerprint.encode()).digest()
    start = int.from_bytes(digest[:8], "big")
    candidates = (seeds[(start + count + step) % len(seeds)] for step in range(2))
    return next((seed for seed in candidates if seed != _to_integer(own)), None)


def _get_allowed_seeds(parameter: Parameter | None) -> Sequence[int]:
    if parameter is not None and (values := [one for one in parameter.values if type(one) is int]):
        return values
    low, high = MIN_SEED, MAX_SEED
    if parameter is not None and parameter.minimum is not None:
        low = max(low, math.ceil(parameter.minimum))
    if parameter is not None and parameter.maximum is not None:
        high = min(high, math.floor(parameter.maximum))
    return range(low, high + 1) if low <= high else (low,)


def _to_integer(value: Any) -> int | None:
    """Return a seed as an integer, None if it is none. Templates render to strings."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None
