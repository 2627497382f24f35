"""How Generio's flow runs and assets look on the wire, as the switches have it.

It decides nothing: who may see what is the rules' affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from airflow_provider_flows.emulator.clock import iso
from airflow_provider_flows.emulator.errors import Refusal, complaint
from airflow_provider_flows.emulator.generio.inputs import data_uri
from airflow_provider_flows.emulator.generio.templates import GLB
from airflow_provider_flows.emulator.runs import GenerioRun, InputAsset, OutputAsset
from airflow_provider_flows.emulator.switches import Switches
from airflow_provider_flows.emulator.timeline import Moment

STATES = frozenset({"created", "starting", "running", "aborting", "completed", "aborted", "failed"})
# Two words for one key stand on the vendor's page.
SORT_KEYS = {"status": "state"} | {
    name: name for name in ("state", "progress", "created_at", "started_at", "finished_at")
}


@dataclass(frozen=True)
class ListQuery:
    """What a request for the list of flow runs asks for."""

    filter_by: str | None = None
    sort_by: str = "created_at"
    limit: int | None = None
    offset: int = 0
    page: int = 1


@dataclass(frozen=True)
class Views:
    """The views, under one set of switches."""

    switches: Switches

    def run(self, run: GenerioRun) -> dict[str, Any]:
        """Show a flow run."""
        moment = run.moment
        style = self.switches.timestamps
        shown: dict[str, Any] = {
            "flow_id": run.flow_run_id,
            "template": run.template,
            **self._state(moment),
            **self._progress(moment),
            "created_at": iso(run.created_at, style),
            "started_at": iso(run.course.started_at, style),
            "finished_at": iso(moment.finished_at, style),
            "parameters": run.parameters,
            "additional": run.additional,
        }
        if moment.state == "failed" and self.switches.error_field != "none":
            shown[self.switches.error_field] = run.error
        return shown

    def runs(self, runs: list[GenerioRun], query: ListQuery) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Show the list of flow runs, and the hints about its pages."""
        self._check(query)
        key = SORT_KEYS[query.sort_by]
        rows = [(self._sort_value(run, key), run) for run in runs if self._wanted(run, query.filter_by)]
        rows.sort(key=itemgetter(0), reverse=self.switches.sort_order == "descending")
        window, hints = self._page(len(rows), query)
        return [self._projected(self.run(run), query.filter_by) for _, run in rows[window]], hints

    def input(self, asset: InputAsset, run: GenerioRun, *, with_data: bool) -> dict[str, Any]:
        """Show one input."""
        shown = self.identifier(asset.asset_id) | {
            "status": self.switches.ready_word,
            **self._processed(run.moment.finished_at),
            "additional": asset.additional,
        }
        return shown | ({"data": asset.data} if with_data else {})

    def output(self, asset: OutputAsset, run: GenerioRun, *, with_data: bool) -> dict[str, Any]:
        """Show one output as the list of outputs has it."""
        shown = self.identifier(asset.asset_id)
        shown["status"] = self.switches.ready_word if asset.error is None else "error"
        shown |= self._processed(run.moment.finished_at) | {"additional": asset.additional}
        if asset.error is not None:
            return shown | {"error": asset.error}
        if self.switches.outputs_ready == "later" and not run.settled:
            return shown | {"status": "processing"}
        return shown | ({"data": data_uri(GLB, asset.content)} if with_data else {})

    def identifier(self, asset_id: str) -> dict[str, Any]:
        """Show an asset's id under the key, or keys, of the day."""
        way = self.switches.output_id
        return dict.fromkeys(("asset_id", "id") if way == "both" else (way,), asset_id)

    def _state(self, moment: Moment) -> dict[str, Any]:
        word = moment.state.upper() if self.switches.state_case == "upper" else moment.state
        keys = ("state", "status") if self.switches.state_key == "both" else (self.switches.state_key,)
        return dict.fromkeys(keys, word)

    def _progress(self, moment: Moment) -> dict[str, Any]:
        way = self.switches.progress
        if way == "missing":
            return {}
        if way == "null":
            return {"progress": None}
        fraction = moment.fraction
        if way == "late":
            fraction = 1.0 if moment.state == "completed" else 0.0
        elif way == "steps":
            fraction = int(fraction * 4) / 4
        return {"progress": round(fraction * (100 if way == "percent" else 1), 4)}

    def _processed(self, moment: float | None) -> dict[str, Any]:
        values = {
            "timestamp": iso(moment, self.switches.timestamps),
            "bool": moment is not None,
            "null": None,
        }
        way = self.switches.processed
        return {} if way == "missing" else {"processed": values[way]}

    def _check(self, query: ListQuery) -> None:
        if query.sort_by not in SORT_KEYS:
            raise _unknown("sort_by", query.sort_by, sorted(SORT_KEYS))
        if self.switches.filter_by == "state" and query.filter_by and query.filter_by not in STATES:
            raise _unknown("filter_by", query.filter_by, sorted(STATES))

    def _wanted(self, run: GenerioRun, filter_by: str | None) -> bool:
        return self.switches.filter_by != "state" or not filter_by or run.state == filter_by

    def _projected(self, shown: dict[str, Any], filter_by: str | None) -> dict[str, Any]:
        if not filter_by or not self.switches.filter_by.startswith("fields"):
            return shown
        wanted = {name.strip() for name in filter_by.split(",")}
        if self.switches.filter_by == "fields":
            wanted.add("flow_id")
        return {name: value for name, value in shown.items() if name in wanted}

    @staticmethod
    def _sort_value(run: GenerioRun, key: str) -> tuple[Any, str]:
        moment = run.moment
        values = {
            "state": moment.state,
            "progress": moment.fraction,
            "created_at": run.created_at,
            "started_at": run.course.started_at or 0.0,
            "finished_at": moment.finished_at or 0.0,
        }
        # Ids grow with time: they settle what happened within one tick of the clock.
        return values[key], run.flow_run_id

    def _page(self, total: int, query: ListQuery) -> tuple[slice, dict[str, Any]]:
        way, size = self.switches.paging, self.switches.page_size
        hints: dict[str, Any]
        if way == "offset":
            limit = min(size, query.limit or size)
            hints = {"total": total, "limit": limit, "offset": query.offset}
            return slice(query.offset, query.offset + limit), hints
        if way == "page":
            pages = max(1, -(-total // size))
            following = f"/flows?page={query.page + 1}" if query.page < pages else None
            hints = {"next": following, "total": total, "page": query.page, "pages": pages}
            return slice((query.page - 1) * size, query.page * size), hints
        return slice(0, size if way == "silent" else None), {}


def _unknown(name: str, value: str, known: list[str]) -> Refusal:
    wanted = ", ".join(f"'{word}'" for word in known)
    return Refusal(422, [complaint(["query", name], f"Input should be one of {wanted}", "enum", value)])
