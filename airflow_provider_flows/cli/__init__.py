"""The command line, `airflow flows`: what a person or a script asks of a service at a terminal.

It knows no service and no request; whatever it does, the hook and the modules that the operator stands on do.
"""
