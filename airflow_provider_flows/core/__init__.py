"""The pure core: what a flow run is, and the conversations in which services are called.

Modules here use the standard library, pendulum and pybase64 only. They do no I/O and do not import Airflow.
"""
