"""The bounds of everything that a service sends, and of everything that is read for it: one table.

`docs/explanation/threat_model.md` has the same table for users, and a test compares the two.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# Identifiers and texts of a response, in characters.
MAX_ID_LENGTH = 256
MAX_ORIGIN_LENGTH = 200  # of the host that a link leads to, in a message
MAX_SHOWN_PATH_LENGTH = 500  # of a request's path, or of a link to an output, in a message
MAX_HOST_LENGTH = 253  # of a name in the connection's picture_hosts, as in DNS

# Numbers of things in one response.
MAX_OUTPUTS = 10_000
MAX_INPUTS = MAX_OUTPUTS  # of one run, variables too; all outputs of a run can be the inputs of the next one

# Sizes in bytes.
MAX_RUN_BYTES = MIB
MAX_LIST_BYTES = 64 * MIB  # over all pages together

# The least that a file must move, in either direction, within a window of seconds: 1 KiB/s over a minute.
MIN_TRANSFER_BYTES = 60 * KIB
TRANSFER_WINDOW_SECONDS = 60.0

# For the last poll of a wait, which starts at the deadline; seconds.
LAST_POLL_GRACE_SECONDS = 2.0

# Downloads through the API server, of one of its processes. A reader must take a chunk within the stall time,
# which is a minimum rate of about 1 KiB/s.
MAX_DOWNLOADS = 16  # at a time, each with a thread
DOWNLOAD_BUFFER_BYTES = 512 * KIB  # of one reader
DOWNLOAD_CHUNK_BYTES = 64 * KIB
MAX_STALL_SECONDS = 60.0
MAX_SLOT_WAIT_SECONDS = 10.0  # until a download of the same output has ended
MAX_SERVED_BYTES = 2048 * MIB  # of a file from a service, or one whose digest is computed before it is sent
MAX_IMAGE_BYTES = 32 * MIB
MAX_CHECKED_INFO_BYTES = 256 * MIB  # of a file whose digest is computed before its header is shown
MAX_GLB_HEADER_BYTES = 8 * MIB  # of the JSON chunk; models with thousands of parts have less

# Sizes of one input of a run, in bytes. All are checked before a run is created.
MAX_INPUT_BYTES = 4096 * MIB  # a file; it is never in memory as a whole
MAX_DATA_URI_BYTES = 64 * MIB  # a data URI, which is in memory
MAX_TEXT_INPUT_BYTES = MIB  # a prompt, a variable or a text file

# A BMP is the only input that is decoded: a picture of 8K, and 128 MiB of memory.
MAX_BITMAP_PIXELS = 32 * 1024 * 1024
MAX_BITMAP_HEADER_BYTES = 124  # BITMAPV5HEADER, the largest one; Pillow reads as much as a file says
