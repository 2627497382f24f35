"""Files inside of responses: found, decoded, checked and passed on a chunk at a time."""
