"""The two HTTP transports: `requests` for workers and the command line, `aiohttp` for the triggerer.

Each sends one `Request` at a time with the `Settings` of a connection, and each has a driver that runs
conversations.
"""
