"""Programs for people who work on this package: the demo, a whole Airflow to try it in, and what tests need of it.

Nothing here is shipped to users.
"""
