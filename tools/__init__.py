"""Programs for developers of this package: the demo, a local Airflow, helpers of tests and benchmarks.

The wheel does not contain them.
"""
