"""What happens around one try of a task in an Airflow worker."""
