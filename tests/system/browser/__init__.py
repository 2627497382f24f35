"""`make test-browser`: the plugin's pages in a browser, with a complete Airflow and the emulator.

These tests are not part of `make test`, because they need a browser and take minutes.
"""
