"""The Generio half of the emulator."""
