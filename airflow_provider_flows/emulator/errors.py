"""The exceptions of the emulator's rules and mesh functions, and one entry of FastAPI's validation errors."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that the emulated service rejects.

    :param status: the HTTP status of the response.
    :param detail: the reason as text, or a list of entries as :func:`validation_error` returns them.
    """

    def __init__(self, status: int, detail: str | list[dict[str, Any]]) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class UnreadableInputError(Exception):
    """The content of an input does not match its media type."""


def validation_error(location: list[str | int], message: str, kind: str, value: object) -> dict[str, Any]:
    """Return one entry of the ``detail`` list that FastAPI sends with status 422.

    :param location: path of the value in the request, such as ``["body", "parameters", "seed"]``.
    :param kind: pydantic's error type, such as ``"missing"``.
    """
    return {"type": kind, "loc": location, "msg": message, "input": value}
