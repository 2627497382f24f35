"""The bounds of everything that a service sends, and of everything that is read for it: one table.

`docs/explanation/threat_model.md` has the same table for users, and a test compares the two.
"""

from __future__ import annotations

MIB = 1024 * 1024

# Identifiers and texts of a response, in characters.
MAX_ID_LENGTH = 256

# Numbers of things in one response.
MAX_OUTPUTS = 10_000
MAX_INPUTS = MAX_OUTPUTS  # of one run, variables too; all outputs of a run can be the inputs of the next one

# Sizes in bytes.
MAX_RUN_BYTES = MIB
MAX_LIST_BYTES = 64 * MIB  # over all pages together

# Sizes of one input of a run, in bytes. All are checked before a run is created.
MAX_INPUT_BYTES = 4096 * MIB  # a file; it is never in memory as a whole
MAX_DATA_URI_BYTES = 64 * MIB  # a data URI, which is in memory
MAX_TEXT_INPUT_BYTES = MIB  # a prompt, a variable or a text file

# A BMP is the only input that is decoded: a picture of 8K, and 128 MiB of memory.
MAX_BITMAP_PIXELS = 32 * 1024 * 1024
MAX_BITMAP_HEADER_BYTES = 124  # BITMAPV5HEADER, the largest one; Pillow reads as much as a file says
