"""A third service for airflow-provider-flows, which has the operator, the sensor and the commands."""
