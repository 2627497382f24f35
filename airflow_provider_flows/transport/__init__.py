"""How bytes move: the same conversations over `requests` (workers, command line) and over `aiohttp` (triggerer).

A transport knows no paths, no states and no service; it takes `Settings` and sends one `Request` at a time.
"""
