"""The bounds of everything that a service sends, and of everything that is read for it: one table.

`docs/explanation/threat_model.md` has the same table for users, and a test compares the two.
"""

from __future__ import annotations

MIB = 1024 * 1024

# Identifiers and texts of a response, in characters.
MAX_ID_LENGTH = 256
MAX_ORIGIN_LENGTH = 200  # of the host that a link leads to, in a message
MAX_SHOWN_PATH_LENGTH = 500  # of a request's path, or of a link to an output, in a message
MAX_HOST_LENGTH = 253  # of a name in the connection's picture_hosts, as in DNS

# Numbers of things in one response.
MAX_OUTPUTS = 10_000

# Sizes in bytes.
MAX_RUN_BYTES = MIB
MAX_LIST_BYTES = 64 * MIB  # over all pages together
