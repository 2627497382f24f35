"""One try of a task in an Airflow worker: start, end, kill, and the state saved for the next try."""
