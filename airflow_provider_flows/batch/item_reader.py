"""The items of a batch: the first pass over all of them, and then those that are to be started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_provider_flows.batch.records import ItemRecord
from airflow_provider_flows.core.batch import BatchItem, ItemProblem, ItemState, ProblemList

if TYPE_CHECKING:
    from airflow_provider_flows.batch.options import BatchTask, RunOptions
    from airflow_provider_flows.batch.records import BatchRecords
    from airflow_provider_flows.batch.results import BatchResults
    from airflow_provider_flows.core.batch import BatchState
    from airflow_provider_flows.storage.batch_items import BatchItems


class ItemReader:
    """Reads the items of a batch. The methods read files, and so are called in threads.

    :param sources: as those of a `BatchProgram`.
    :param state: counts the items.
    """

    def __init__(  # noqa: PLR0917  # the parts of one program
        self,
        sources: tuple[BatchItems, BatchItems],
        state: BatchState,
        options: RunOptions,
        records: BatchRecords,
        results: BatchResults,
        task: BatchTask,
    ) -> None:
        self._source, self._checked_source = sources
        self._state, self._options = state, options
        self._records, self._results, self._task = records, results, task
        self._skipped = bytearray()  # 1 for each item, in the order of the source, that is not to be taken

    def read_all(self) -> list[BatchItem]:
        """Count all items, and return those whose runs may be active.

        :raises FlowInputError: items cannot be sent.
        """
        problems, active_items = ProblemList(), []
        stored: list[tuple[int, BatchItem, ItemRecord]] = []
        source = self._checked_source if self._task.is_first_part else self._source
        for index, item in enumerate(source):
            self._skipped.append(1)
            if isinstance(item, ItemProblem):
                self._add_problem(item, problems)
                continue
            record = self._records.get(item.key)
            state = self._get_initial_state(item, record)
            if record is not None and state not in {ItemState.PENDING, ItemState.ACTIVE}:
                stored.append((index, item, replace(record, state=state)))
                continue
            self._state.add(state)
            if state is ItemState.ACTIVE:
                active_items.append(item)
            else:
                self._skipped[index] = 0
        if problems and not self._task.skips_invalid_items:
            raise problems.error(self._source.row_name)
        for (index, _, record), line in self._results.restore(stored, checks_files=self._task.is_first_part):
            # without its line, or its files, a completed run is fetched again
            self._skipped[index] = int(line is not None)
            self._state.add(ItemState.PENDING if line is None else record.state)
            self._state.reused += int(line is not None and line.reused)
            self._state.rejected += int(record.state is ItemState.FAILED and self._is_rejected(record))
        return active_items

    def count_failures(self) -> int:
        """Return how many items have failed in earlier parts."""
        return self._state.counts[ItemState.FAILED] + self._state.counts[ItemState.ABORTED]

    def iter_pending(self) -> Iterator[BatchItem]:
        """Yield the items that are to be started."""
        for index, item in enumerate(self._source):
            if not isinstance(item, ItemProblem) and index < len(self._skipped) and not self._skipped[index]:
                yield item

    def _add_problem(self, problem: ItemProblem, problems: ProblemList) -> None:
        problems.add(problem)
        self._results.add_problem(problem)
        self._state.add(ItemState.INVALID)
        if problem.key is not None:  # for the next part of the try, which does not check the items again
            self._records.put(problem.key, ItemRecord("", state=ItemState.INVALID))

    def _get_initial_state(self, item: BatchItem, record: ItemRecord | None) -> ItemState:
        """Return the state of an item by its record.

        An item that failed in an earlier try is run again, but not one whose outputs were rejected: another
        try would pay for the same outputs.
        """
        if record is None:
            return ItemState.PENDING
        if record.state is ItemState.ACTIVE:
            is_same_try = record.try_number == self._task.try_number and not self._task.is_first_part
            has_failed = is_same_try and record.failures > self._state.policy.item_retries
            return ItemState.FAILED if has_failed else ItemState.ACTIVE
        is_same_request = record.fingerprint == self._options.compute_fingerprint(item)
        if record.state is not ItemState.COMPLETED:
            is_final = record.state is ItemState.FAILED and is_same_request and self._is_rejected(record)
            return ItemState.PENDING if self._task.is_first_part and not is_final else record.state
        return record.state if is_same_request else ItemState.PENDING

    def _is_rejected(self, record: ItemRecord) -> bool:
        """Return whether no other run may replace the rejected ones of an item."""
        has_checks = self._options.output_options.check_outputs is not None
        return has_checks and record.rejections > self._state.policy.check_retries
