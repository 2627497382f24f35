"""The command line, `airflow flows`: the flows and flow runs of a service, at a terminal or in a script."""
