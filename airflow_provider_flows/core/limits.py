"""The bounds of everything that a service sends, and of everything that is read for it: one table.

`docs/explanation/threat_model.md` has the same table for users, and a test compares the two.
"""

from __future__ import annotations

MIB = 1024 * 1024

# Identifiers and texts of a response, in characters.
MAX_ID_LENGTH = 256

# Numbers of things in one response.
MAX_OUTPUTS = 10_000

# Sizes in bytes.
MAX_RUN_BYTES = MIB
MAX_LIST_BYTES = 64 * MIB  # over all pages together

# What the pages of one API server process use, and its aborts of marked tasks.
MAX_SERVICE_THREADS = 4  # of one connection, for its runs, lists, definitions and graphs
MAX_FILE_THREADS = 4  # of one connection, for downloads from its service, and as many for stored files
MAX_ABORT_THREADS = 4  # of one connection
MAX_EXTRA_THREADS = 32  # beyond the first of each connection, all connections together
MAX_THREAD_POOLS = 200  # connections, with one thread each, that are in use at the same time
MAX_QUEUED_JOBS = 32  # of one connection, beyond those in its threads; further ones are rejected
MAX_QUEUED_ABORTS = 10_000  # of one connection
MAX_FILE_WAIT_SECONDS = 900.0  # until a file can be sent to the browser
MAX_REQUESTS_PER_SECOND = 25.0  # of one connection, unless it sets `max_requests_per_second`
MAX_CACHED_BYTES = 64 * MIB  # of all cached responses
MAX_CACHED_RESPONSE_BYTES = 16 * MIB  # of one
MAX_RUN_LIST_BYTES = 12 * MIB  # of a cached list of runs; it loses its oldest runs
MAX_STALE_SECONDS = 300.0  # for which an expired response is kept, to be shown if its service fails
