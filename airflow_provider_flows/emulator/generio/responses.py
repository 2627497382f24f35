"""The bodies of Generio's responses about flow runs and assets, in the form of the switches."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from airflow_provider_flows.emulator.errors import ApiError, validation_error
from airflow_provider_flows.emulator.generio.templates import GLB
from airflow_provider_flows.emulator.runs import GenerioRun, InputAsset, OutputAsset, to_data_uri
from airflow_provider_flows.emulator.switches import Switches
from airflow_provider_flows.emulator.timeline import StateAt, to_iso

STATES = frozenset({"created", "starting", "running", "aborting", "completed", "aborted", "failed"})
# The vendor's page has two names for one key (vendor_notes.md, G-07).
SORT_KEYS = {"status": "state"} | {
    name: name for name in ("state", "progress", "created_at", "started_at", "finished_at")
}


@dataclass(frozen=True)
class RunQuery:
    """The query parameters of GET /flows."""

    filter_by: str | None = None
    sort_by: str = "created_at"
    limit: int | None = None
    offset: int = 0
    page: int = 1


@dataclass(frozen=True)
class ResponseBodies:
    """The bodies, in the form of one set of switches."""

    switches: Switches

    def run(self, run: GenerioRun) -> dict[str, Any]:
        """Return a flow run."""
        current = run.current
        style = self.switches.timestamps
        body: dict[str, Any] = {
            "flow_id": run.flow_run_id,
            "template": run.template,
            **self._state_fields(current),
            **self._progress_field(current),
            "created_at": to_iso(run.created_at, style),
            "started_at": to_iso(run.timeline.started_at, style),
            "finished_at": to_iso(current.finished_at, style),
            "parameters": run.parameters,
            "additional": run.additional,
        }
        if current.state == "failed" and self.switches.error_field != "none":
            body[self.switches.error_field] = run.error
        return body

    def runs(self, runs: list[GenerioRun], query: RunQuery) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return one page of the list of flow runs, and the keys that describe the pages.

        :raises ApiError: a query parameter has an unknown value.
        """
        self._validate_query(query)
        key = SORT_KEYS[query.sort_by]
        rows = [
            (self._sort_value(run, key), run) for run in runs if self._matches_filter(run, query.filter_by)
        ]
        rows.sort(key=itemgetter(0), reverse=self.switches.sort_order == "descending")
        window, hints = self._select_page(len(rows), query)
        return [self._select_fields(self.run(run), query.filter_by) for _, run in rows[window]], hints

    def input(self, asset: InputAsset, run: GenerioRun, *, with_data: bool) -> dict[str, Any]:
        """Return one input, optionally with its data."""
        body = self._id_fields(asset.asset_id) | {
            "status": self.switches.ready_word,
            **self._processed_field(run.current.finished_at),
            "additional": asset.additional,
        }
        return body | ({"data": asset.data} if with_data else {})

    def output(self, asset: OutputAsset, run: GenerioRun, *, with_data: bool) -> dict[str, Any]:
        """Return one output as in the list of outputs, optionally with its data."""
        body = self._id_fields(asset.asset_id)
        body["status"] = self.switches.ready_word if asset.error is None else "error"
        body |= self._processed_field(run.current.finished_at) | {"additional": asset.additional}
        if asset.error is not None:
            return body | {"error": asset.error}
        if self.switches.outputs_ready == "later" and not run.has_ready_outputs:
            return body | {"status": "processing"}
        return body | ({"data": to_data_uri(GLB, asset.content)} if with_data else {})

    def _id_fields(self, asset_id: str) -> dict[str, Any]:
        """Return an asset's id under the key, or keys, of the switch `output_id`."""
        mode = self.switches.output_id
        return dict.fromkeys(("asset_id", "id") if mode == "both" else (mode,), asset_id)

    def _state_fields(self, current: StateAt) -> dict[str, Any]:
        raw_state = current.state.upper() if self.switches.state_case == "upper" else current.state
        keys = ("state", "status") if self.switches.state_key == "both" else (self.switches.state_key,)
        return dict.fromkeys(keys, raw_state)

    def _progress_field(self, current: StateAt) -> dict[str, Any]:
        mode = self.switches.progress
        if mode == "missing":
            return {}
        if mode == "null":
            return {"progress": None}
        fraction = current.fraction
        if mode == "late":
            fraction = 1.0 if current.state == "completed" else 0.0
        elif mode == "steps":
            fraction = int(fraction * 4) / 4
        return {"progress": round(fraction * (100 if mode == "percent" else 1), 4)}

    def _processed_field(self, finished_at: float | None) -> dict[str, Any]:
        values = {
            "timestamp": to_iso(finished_at, self.switches.timestamps),
            "bool": finished_at is not None,
            "null": None,
        }
        mode = self.switches.processed
        return {} if mode == "missing" else {"processed": values[mode]}

    def _validate_query(self, query: RunQuery) -> None:
        if query.sort_by not in SORT_KEYS:
            raise _unknown_value_error("sort_by", query.sort_by, sorted(SORT_KEYS))
        if self.switches.filter_by == "state" and query.filter_by and query.filter_by not in STATES:
            raise _unknown_value_error("filter_by", query.filter_by, sorted(STATES))

    def _matches_filter(self, run: GenerioRun, filter_by: str | None) -> bool:
        return self.switches.filter_by != "state" or not filter_by or run.state == filter_by

    def _select_fields(self, body: dict[str, Any], filter_by: str | None) -> dict[str, Any]:
        if not filter_by or not self.switches.filter_by.startswith("fields"):
            return body
        names = {name.strip() for name in filter_by.split(",")}
        if self.switches.filter_by == "fields":
            names.add("flow_id")
        return {name: value for name, value in body.items() if name in names}

    @staticmethod
    def _sort_value(run: GenerioRun, key: str) -> tuple[Any, str]:
        current = run.current
        values = {
            "state": current.state,
            "progress": current.fraction,
            "created_at": run.created_at,
            "started_at": run.timeline.started_at or 0.0,
            "finished_at": current.finished_at or 0.0,
        }
        # Ids increase with time, and decide between equal timestamps.
        return values[key], run.flow_run_id

    def _select_page(self, total: int, query: RunQuery) -> tuple[slice, dict[str, Any]]:
        mode, size = self.switches.paging, self.switches.page_size
        hints: dict[str, Any]
        if mode == "offset":
            limit = min(size, query.limit or size)
            hints = {"total": total, "limit": limit, "offset": query.offset}
            return slice(query.offset, query.offset + limit), hints
        if mode == "page":
            pages = max(1, -(-total // size))
            next_page = f"/flows?page={query.page + 1}" if query.page < pages else None
            hints = {"next": next_page, "total": total, "page": query.page, "pages": pages}
            return slice((query.page - 1) * size, query.page * size), hints
        return slice(0, size if mode == "silent" else None), {}


def _unknown_value_error(name: str, value: str, known: list[str]) -> ApiError:
    choices = ", ".join(f"'{choice}'" for choice in known)
    return ApiError(
        422, [validation_error(["query", name], f"Input should be one of {choices}", "enum", value)]
    )
