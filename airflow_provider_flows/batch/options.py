"""The options of a batch, and what its program needs to know of its task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.check_retry import choose_seed, has_own_seed, set_seed
from airflow_provider_flows.core.validation import Problems
from airflow_provider_flows.storage.inputs import build_request

if TYPE_CHECKING:
    from airflow_provider_flows.core.batch import BatchItem
    from airflow_provider_flows.core.start_or_resume import RunRequest
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.output_options import OutputOptions

FINGERPRINT_LENGTH = 16  # hexadecimal digits


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the flow runs of a batch are started, awaited and fetched; see `RunFlowBatchOperator`.

    :param output_options: of each run; `folder_name` is that of its item.
    :param timeout: seconds that one flow run may take, None for any time.
    :param stamp: what the stamp of each run says about the try of the task.
    """

    flow: str
    parameters: Mapping[str, Any] | None
    input_conn_id: str | None
    output_options: OutputOptions
    poll_interval: float
    max_poll_interval: float
    timeout: float | None
    validate: bool
    abort_on_kill: bool
    stamp: Mapping[str, Any]

    def get_parameters(self, item: BatchItem) -> dict[str, Any] | None:
        """Return the parameters of an item: its own take precedence."""
        if self.parameters is None and item.parameters is None:
            return None
        return {**(self.parameters or {}), **(item.parameters or {})}

    def compute_fingerprint(self, item: BatchItem) -> str:
        """Return a digest of what an item's run is to be made of, as it is given; no file is read."""
        request = [self.flow, item.inputs, self.get_parameters(item), item.additional]
        # through JSON first, which turns every key into text: keys of several types cannot be sorted
        plain = json.loads(json.dumps(request, default=str))
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        return digest.hexdigest()[:FINGERPRINT_LENGTH]

    def build_request(
        self, item: BatchItem, hook: FlowsHook, problems: Problems, *, reads_files: bool = True
    ) -> RunRequest:
        """Return the request for an item's run.

        :param reads_files: whether the files among its inputs are read, without which it cannot be sent.
        """
        parameters = self.get_parameters(item)
        arguments = item.inputs, parameters, item.additional, self.input_conn_id
        return build_request(self.flow, *arguments, problems, hook, reads_files=reads_files)

    def change_seed(
        self, request: RunRequest, hook: FlowsHook, rejections: int
    ) -> tuple[RunRequest, RunRequest]:
        """Return the request for another run in place of rejected ones, and the one by which it is reused.

        :param request: for an item, as it is given.
        :param rejections: how many runs of the item were rejected.
        """
        if not rejections:
            return request, request
        definition = hook.preflight.check(request, validate=self.validate).definition
        seed = choose_seed(request, definition, rejections)
        changed = request if seed is None else set_seed(request, seed)
        return changed, changed if has_own_seed(request) else request

    def find_problem(self, item: BatchItem, hook: FlowsHook) -> str | None:
        """Return why an item cannot be sent, as far as that is known without its files; None if it can."""
        problems = Problems()
        request = self.build_request(item, hook, problems, reads_files=False)
        found = hook.preflight.check(request, problems, validate=self.validate).problems
        return str(found.error()) if found else None


@dataclass(frozen=True, slots=True)
class BatchTask:
    """What the program needs to know of its task.

    :param try_number: of the task.
    :param is_first_part: whether this is the start of a try, and not its continuation after a deferral.
    :param earlier_stamp: what the stamps of all runs of earlier tries have in common; None in a first try.
    :param skips_invalid_items: whether items that cannot be sent are left out (`validate="skip"`).
    :param defers: whether runs that are active are left to a trigger.
    :param final_run_ids: of the runs that a trigger has found to be final; None if it has found none yet. The
        others are still active.
    """

    try_number: int
    is_first_part: bool = True
    earlier_stamp: dict[str, Any] | None = None
    skips_invalid_items: bool = False
    defers: bool = False
    final_run_ids: Collection[str] | None = None
