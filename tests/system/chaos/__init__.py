"""Scenarios in which the processes of a real Airflow die, stop or lose the service, and what must come of each.

Nothing in here is part of the package, and nothing is replaced by a mock: `python -m tests.system.chaos` plays all of it.
"""
