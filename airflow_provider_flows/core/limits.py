"""The bounds of everything that a service sends, and of everything that is read for it: one table.

`docs/explanation/threat_model.md` has the same table for users, and a test compares the two.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# Identifiers and texts of a response, in characters.
MAX_ID_LENGTH = 256
MAX_ORIGIN_LENGTH = 200  # of the host that a link leads to, in a message
MAX_HOST_LENGTH = 253  # of a name in the connection's picture_hosts, as in DNS

# Numbers of things in one response.
MAX_OUTPUTS = 10_000

# The head of a response: status line and headers, or the trailer after the last chunk.
MAX_HEADERS = 512  # a gateway that sets many cookies sends more than the 100 of `http.client`
MAX_HEADER_LINE_BYTES = 64 * KIB  # with its line break, as in `http.client`
MAX_HEAD_BYTES = MIB

# Sizes in bytes.
MAX_RUN_BYTES = MIB
MAX_LIST_BYTES = 64 * MIB  # over all pages together

# The least that a file must move, in either direction, within a window of seconds: 1 KiB/s over a minute.
MIN_TRANSFER_BYTES = 60 * 1024
TRANSFER_WINDOW_SECONDS = 60.0

MAX_EXPLAINED_ERRORS = 32  # an error, and those that it wraps, among which its cause is searched

# For the last poll of a wait, which starts at the deadline; seconds.
LAST_POLL_GRACE_SECONDS = 2.0
