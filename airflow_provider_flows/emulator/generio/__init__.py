"""The emulated Generio API."""
