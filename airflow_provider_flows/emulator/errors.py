"""The one exception by which the emulator's rules say no to a request.

How a refusal looks on the wire is for each service's routes to say.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is answered with an error status and a reason."""

    def __init__(self, status: int, detail: str | list[dict[str, Any]]) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def validation_error(location: list[str | int], message: str, kind: str, value: object) -> dict[str, Any]:
    """Return one entry of a FastAPI-style 422 detail list."""
    return {"type": kind, "loc": location, "msg": message, "input": value}
