"""Files inside HTTP responses: extract, decode, check and write them, a chunk at a time."""
