"""Everything that opens a file: inputs that are read and outputs that are written."""
