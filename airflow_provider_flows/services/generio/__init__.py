"""Generio: its endpoints and how its responses are read."""
