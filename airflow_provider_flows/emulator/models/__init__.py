"""The 3D models that the emulator creates."""
