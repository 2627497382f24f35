"""What `make test-browser` runs: the pages of flow runs in a real browser, on a real Airflow, beside the emulator.

It is no part of `make test`: it needs a browser and takes minutes.
"""
