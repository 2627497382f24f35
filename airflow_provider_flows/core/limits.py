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
MAX_ORIGIN_LENGTH = 200  # of the host that a link leads to, in a message
MAX_SHOWN_PATH_LENGTH = 500  # of a request's path, or of a link to an output, in a message
MAX_HOST_LENGTH = 253  # of a name in the connection's picture_hosts, as in DNS

# What a service says about an error, in characters.
MAX_REASON_LENGTH = 200  # as it is in messages, logs and pages
MIN_ECHO_LENGTH = 12  # of a part of an input that is replaced; shorter parts occur in ordinary text
MIN_INPUT_LENGTH = 4  # of a complete input that is replaced where it stands alone
MAX_COMPARED_LENGTH = 256 * KIB  # of the start of an input with which the service's text is compared

# Numbers of things in one response.
MAX_OUTPUTS = 10_000
MAX_INPUTS = 10_000  # of one run, variables too; all outputs of a run can be the inputs of the next one
MAX_JSON_DEPTH = 64  # services nest a few levels; Airflow's XCom code and Python's json module recurse
MAX_JSON_VALUES = 4_000_000  # by commas and brackets: an empty object takes 30 times its text in memory

# The head of a response: status line and headers, or the trailer after the last chunk.
MAX_HEADERS = 512  # a gateway that sets many cookies sends more than the 100 of `http.client`
MAX_HEADER_LINE_BYTES = 64 * KIB  # with its line break, as in `http.client`
MAX_HEAD_BYTES = MIB

# A list, over all pages together.
MAX_PAGES = 1_000
MAX_LISTED_RUNS = 100_000
MAX_SEARCHED_RUNS = 5_000  # the newest ones, among which a try without a record finds its task's runs
MAX_TRACKED_IDS = 5_000  # of runs that left the list of an asset watcher, and are still to be polled

# Sizes in bytes. `max_response_mib` of the connection is the bound of every response that is no file.
MAX_RUN_BYTES = MIB
MAX_LIST_BYTES = 64 * MIB  # over all pages together
MAX_DEFINITIONS_BYTES = 16 * MIB  # of all definitions of flows, over all pages together
MAX_ERROR_BYTES = MIB  # of a response that is no success
MAX_IN_MEMORY_BYTES = 128 * MIB  # of a file that is downloaded into memory, and of a list with content
MAX_METADATA_BYTES = 4 * MIB  # of the metadata (`additional`) of all outputs of a run in XCom, as JSON
MAX_FILE_FIELDS_BYTES = 350  # of a file's URI below its folder, size, digest and media type in XCom, as JSON
MIN_CONTENT_BYTES = 1024  # of texts and metadata in XCom, if all else exceeds max_xcom_bytes
MAX_OTHER_JSON_BYTES = MIB  # of the JSON around a file, which is stored in memory

# Expansion of a compressed response.
MAX_EXPANSION_RATIO = 100
MAX_UNCHECKED_EXPANSION_BYTES = 16 * MIB  # a response that expands to less may have any ratio

# A larger body is parsed in a thread, because an event loop has other work to do.
MAX_INLINE_BYTES = 64 * KIB

# The least that a file must move, in either direction, within a window of seconds: 1 KiB/s over a minute.
MIN_TRANSFER_BYTES = 60 * KIB
TRANSFER_WINDOW_SECONDS = 60.0

MAX_EXPLAINED_ERRORS = 32  # an error, and those that it wraps, among which its cause is searched

# For the last poll of a wait, which starts at the deadline; seconds.
LAST_POLL_GRACE_SECONDS = 2.0

# Between two lines of the log while the request is out that starts a flow run.
START_LOG_SECONDS = 60.0

# Downloads through the API server, of one of its processes. A reader must take a chunk within the stall time,
# which is a minimum rate of about 1 KiB/s.
MAX_DOWNLOADS = 4  # of one connection, at a time, each with a thread
DOWNLOAD_BUFFER_BYTES = 512 * KIB  # of one reader
DOWNLOAD_CHUNK_BYTES = 64 * KIB
MAX_STALL_SECONDS = 60.0
MAX_SLOT_WAIT_SECONDS = 10.0  # until a download of the same output has ended
MAX_SERVED_BYTES = 2048 * MIB  # of a file from a service, or one whose digest is computed before it is sent
MAX_IMAGE_BYTES = 32 * MIB
MAX_MODEL_BYTES = 256 * MIB  # of a 3D model in the viewer; the browser has all of it in memory
MAX_UNASKED_MODEL_BYTES = 32 * MIB  # of one that is displayed without a click
MAX_CHECKED_INFO_BYTES = 256 * MIB  # of a file whose digest is computed before its header is shown
MAX_GLB_HEADER_BYTES = 8 * MIB  # of the JSON chunk; models with thousands of parts have less

# What a task reads of an output to check it (`check_outputs`); a larger one is rejected with that reason.
MAX_CHECKED_TEXT_BYTES = 16 * MIB
MAX_CHECKED_PICTURE_BYTES = 256 * MIB  # a chunk at a time
MAX_MESH_BYTES = 512 * MIB  # of a model whose geometry is loaded, for `is_watertight`
MAX_MESH_TRIANGLES = 5_000_000  # of such a model; they take about 2 GiB in memory
MAX_VERDICT_LENGTH = 300  # characters of one problem of an output
MAX_VERDICT_PROBLEMS = 10  # of one output

# Sizes of one input of a run, in bytes. All are checked before a run is created.
MAX_INPUT_BYTES = 4096 * MIB  # a file; it is never in memory as a whole
MAX_FETCHED_INPUT_BYTES = 4096 * MIB  # all files from URLs of one run; they are in a temporary file
MAX_DATA_URI_BYTES = 64 * MIB  # a data URI, which is in memory
MAX_TEXT_INPUT_BYTES = MIB  # a prompt, a variable or a text file

# The source of a batch's items.
MAX_BATCH_ITEMS = 100_000  # an error names what is beyond; the batch never starts a part of its items
MAX_ITEM_BYTES = 8 * MIB  # a line or a row of a file; a prompt of MAX_TEXT_INPUT_BYTES in JSON may have 6 MiB

# A BMP is the only input that is decoded: a picture of 8K, and 128 MiB of memory.
MAX_BITMAP_PIXELS = 32 * 1024 * 1024
MAX_BITMAP_HEADER_BYTES = 124  # BITMAPV5HEADER, the largest one; Pillow reads as much as a file says

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
MAX_MANIFEST_BYTES = 256 * MIB  # of a batch whose items a page lists; it is read when it has changed
MAX_MANIFEST_LINE_BYTES = MIB
MAX_STALE_SECONDS = 300.0  # for which an expired response is kept, to be shown if its service fails
