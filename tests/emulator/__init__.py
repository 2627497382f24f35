"""Tests of the emulator, over the socket."""
