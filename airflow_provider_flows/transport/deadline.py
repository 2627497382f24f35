"""The time limits of one request, for both transports: when it must be complete, and how fast a file moves.

Until a response begins, and until the end of one that is no file, a request has `connect_timeout` and
`read_timeout` together, from its start or from the end of its upload. A flow run has `read_timeout` once more
for the body of its response, because that is paid for. Files, and bodies as large as files, must move at a
minimum rate instead. The caller's own deadline (`Request.deadline`) limits all of it.

The time for which this side is busy, because it reads a file or writes one, is not the service's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_flows.core.http import Body, Purpose, Request, Response

if TYPE_CHECKING:
    from airflow_provider_flows.transport.settings import Settings

PIECE_BYTES = 16 * 1024  # of an upload: a TLS record, and little enough to see a slow upload's progress


class Deadline:
    """When a request must be complete; its upload and its response may move the time.

    Another thread may ask for `seconds_left`, so a new end is set before anything that depends on it.

    :param settings: the timeouts and the minimum rate.
    :param clock: returns monotonic seconds.
    """

    def __init__(
        self, settings: Settings, request: Request, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._request = request
        self._clock = clock
        self._read_timeout = settings.read_timeout
        self._total = settings.connect_timeout + settings.read_timeout
        self._period, self._period_name = self._total, "connect_timeout and read_timeout together"
        # a longer window where the service may send nothing for longer
        self._window = max(settings.transfer_window, settings.read_timeout)
        self._min_bytes = settings.min_transfer_bytes
        self._is_large_upload = False
        self._started_at = clock()
        self._ends_at = self._started_at + self._total
        self._is_window = False  # whether `_ends_at` is the end of a window, in which `_min_bytes` must move
        self._moved_bytes = 0  # in the window
        self._is_receiving = False
        self._pauses = 0
        self._paused_at = 0.0
        self.has_expired = False
        """Whether `expire` was called, because no time was left."""

    def seconds_left(self) -> float:
        """Return the seconds until the request must be complete, as far as is known now; 0 after that."""
        now = self._clock()
        effective_now = self._paused_at if self._pauses else now
        if self._is_window and effective_now >= self._ends_at and self._moved_bytes >= self._min_bytes:
            self._start_window(effective_now)
        left = self._ends_at - effective_now
        if self._request.deadline is not None:
            left = min(left, self._request.deadline - now)
        return max(0.0, left)

    def expire(self) -> None:
        """Note that no time was left, so that the request was interrupted."""
        self.has_expired = True

    def check(self) -> bool:
        """Return whether time is left; expire if not."""
        if not self.has_expired and self.seconds_left():
            return True
        self.expire()
        return False

    def raise_if_expired(self) -> None:
        """Raise an error if no time is left.

        :raises TimeoutError: no time is left.
        """
        if not self.check():
            raise TimeoutError

    def on_upload_start(self, size: int) -> None:
        """Note that the connection is established, and a body of this size in bytes about to be sent."""
        self._is_large_upload = size > self._min_bytes
        if self._is_large_upload:
            self._start_window(self._clock())

    def on_upload_end(self) -> None:
        """Note that the body is sent, so that the service can begin to process it."""
        if self._is_large_upload and not self._is_receiving:
            self._ends_at = self._clock() + self._total
            self._is_window = False

    def on_response_start(self, status: int) -> None:
        """Note that the final response's headers have arrived. The body of an error is no file."""
        if self.has_expired:  # these headers ended with the connection
            return
        self._is_receiving = True
        if self._request.sink is not None and Response(status).is_success:
            self._start_window(self._clock())
        elif self._request.purpose is Purpose.RUN:
            self._period, self._period_name = self._read_timeout, "read_timeout, for the response's body"
            self._ends_at = self._clock() + self._period
            self._is_window = False

    def on_bytes(self, count: int) -> None:
        """Note that bytes of a body were sent or received."""
        self._moved_bytes += count

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block, in which the service has to wait for this side."""
        if not self._pauses:
            self._paused_at = self._clock()
        self._pauses += 1
        try:
            yield
        finally:
            if self._pauses == 1:
                self._ends_at += self._clock() - self._paused_at
            self._pauses -= 1

    def explain_delay(self) -> str | None:
        """Return what took too long and what to do about it, None if the deadline has not expired."""
        if not self.has_expired:
            return None
        now = self._clock()
        own = self._request.deadline
        if own is not None and own <= self._started_at:
            return "was not sent, because no time was left for it."
        if own is not None and now >= own:
            return (
                f"did not complete within the {own - self._started_at:.3g} s that were left for "
                "it. Check the service and the network; where the caller has a timeout, a longer one gives "
                "it more time."
            )
        if self._is_window:
            direction = "sent its response" if self._is_receiving else "received the request"
            return (
                f"is too slow: the service {direction} at less than {self._min_bytes} bytes in "
                f"{self._window:.3g} s. If the network is as slow as that, increase read_timeout in the "
                "connection's extra, which makes this time longer."
            )
        return (
            f"did not complete within {self._period:.3g} s ({self._period_name}). If the service needs "
            "longer, increase read_timeout in the connection's extra."
        )

    def _start_window(self, now: float) -> None:
        self._ends_at = now + self._window
        self._moved_bytes = 0
        self._is_window = True


class Upload:
    """The body of a request in small pieces, whose progress a deadline observes. It is read once.

    :param deadline: records when the upload starts and ends, and what moves between.
    """

    def __init__(self, body: bytes | Body, deadline: Deadline) -> None:
        self._size = len(body)
        self._remaining = self._size
        self._chunks = iter((body,) if isinstance(body, bytes) else body)
        self._deadline = deadline

    def __len__(self) -> int:
        """Return the number of bytes, for Content-Length."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces.

        :raises FlowInputError: as `read_chunk`.
        """
        while (chunk := self.read_chunk()) is not None:
            yield from self.split(chunk)

    @property
    def is_exhausted(self) -> bool:
        """Whether the last piece was taken. Before that, no receiver has complete JSON."""
        return self._remaining <= 0

    def read_chunk(self) -> bytes | None:
        """Return the next chunk, None at the end; this may read from a file.

        :raises FlowInputError: the file cannot be read, or its content has changed. The last bytes are not
            returned.
        """
        if self._remaining == self._size:
            self._deadline.on_upload_start(self._size)
        with self._deadline.paused():
            chunk = next(self._chunks, None)
        if chunk is None:
            self._deadline.on_upload_end()
        return chunk

    def split(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the pieces of a chunk; the next one is taken when the one before was sent."""
        for start in range(0, len(chunk), PIECE_BYTES):
            piece = chunk[start : start + PIECE_BYTES]
            self._remaining -= len(piece)
            yield piece
            self._deadline.on_bytes(len(piece))
