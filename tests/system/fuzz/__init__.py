"""A long search for a value that a reader cannot take: `make fuzz`."""
