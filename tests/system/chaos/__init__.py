"""Scenarios in which processes of a real Airflow are killed or stopped, or lose the service.

`python -m tests.system.chaos` runs all of them; nothing is mocked.
"""
