"""The bounds of everything that a service sends, and of everything that is read for it: one table.

`docs/explanation/threat_model.md` has the same table for users, and a test compares the two.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# Identifiers and texts of a response, in characters.
MAX_ID_LENGTH = 256  # a longer id is no id: a cut one would be that of something else
MAX_NAME_LENGTH = 200  # of a flow, an output, a state
MAX_MEDIA_TYPE_LENGTH = 128
MAX_ERROR_LENGTH = 2_000  # of the reason of a failure, and of a warning
MAX_DESCRIPTION_LENGTH = 2_000
MAX_TIMESTAMP_CHARACTERS = 64  # a parser may take minutes for a long text
MAX_URL_LENGTH = 8 * KIB  # of a link in an output; browsers and servers accept no longer ones either

# Numbers of things in one response.
MAX_OUTPUTS = 10_000
MAX_JSON_DEPTH = 64  # services nest a few levels; Airflow's XCom code and Python's json module recurse
MAX_JSON_VALUES = 4_000_000  # by commas and brackets: an empty object takes 30 times its text in memory

# A list, over all pages together.
MAX_PAGES = 1_000
MAX_LISTED_RUNS = 100_000
MAX_TRACKED_IDS = 5_000  # of runs that left the list of an asset watcher, and are still to be polled

# Sizes in bytes. `max_response_mib` of the connection is the bound of every response that is no file.
MAX_RUN_BYTES = MIB
MAX_LIST_BYTES = 64 * MIB  # over all pages together
MAX_DEFINITIONS_BYTES = 16 * MIB  # of all definitions of flows, over all pages together
MAX_ERROR_BYTES = MIB  # of a response that is no success
MAX_IN_MEMORY_BYTES = 128 * MIB  # of a file that is downloaded into memory, and of a list with content
MAX_METADATA_BYTES = 4 * MIB  # of the metadata (`additional`) of all outputs of a run in XCom, as JSON
MAX_OTHER_JSON_BYTES = MIB  # of the JSON around a file, which is stored in memory

# Expansion of a compressed response.
MAX_EXPANSION_RATIO = 100
MAX_UNCHECKED_EXPANSION_BYTES = 16 * MIB  # a response that expands to less may have any ratio

# A larger body is parsed in a thread, because an event loop has other work to do.
MAX_INLINE_BYTES = 64 * KIB
