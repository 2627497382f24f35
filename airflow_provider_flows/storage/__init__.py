"""Everything that opens a file: reading of inputs and writing of outputs."""
