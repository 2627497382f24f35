"""The brakes that all requests of one connection share: how soon the next one may be sent.

It sends nothing and does not sleep; watch.py asks it before each request and tells it each answer's status.
"""

from __future__ import annotations

from airflow_provider_flows.core.polling.schedule import LONGEST_RETRY_AFTER

CLOSED_SECONDS = 5.0  # after a 429 that names no time
FIRST_GAP = (
    0.5  # seconds between the first two requests after the gate was closed; each success halves the next gap
)
LEAST_GAP = 0.001
TOO_MANY, AWAY = 429, 503


class Gate:
    """Closed for as long as the service asks, then opened little by little.

    :param per_second: the most requests in a second, None for no bound.
    """

    def __init__(self, per_second: float | None = None) -> None:
        """Begin with the gate open."""
        self._own_gap = 1 / per_second if per_second else 0.0
        self._gap = self._own_gap
        self._opens = 0.0  # epoch seconds
        self._next = 0.0

    def delay(self, now: float) -> float:
        """Give 0 and let one request through, or the seconds after which it may ask again.

        :param now: epoch seconds.
        """
        wait = max(self._opens, self._next) - now
        if wait > 0:
            return wait
        self._next = now + self._gap
        return 0.0

    def answered(self, status: int, retry_after: float | None, now: float) -> bool:
        """Take notice of an answer; tells whether it has closed the gate.

        :param retry_after: seconds that the service asks for, if it does; kept up to an hour.
        """
        if status == TOO_MANY or (status == AWAY and retry_after is not None):
            asked = CLOSED_SECONDS if retry_after is None else min(retry_after, LONGEST_RETRY_AFTER)
            closes = now >= self._opens and asked > 0
            self._opens = max(self._opens, now + asked)
            self._gap = max(self._own_gap, FIRST_GAP)
            return closes
        if now >= self._opens and self._gap > self._own_gap:
            self._gap = max(self._own_gap, self._gap / 2 if self._gap > LEAST_GAP else 0.0)
        return False
