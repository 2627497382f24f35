"""What a flow run is and how one talks about it with a service, in values and conversations.

Nothing below this package does I/O or knows Airflow; transport/ moves the bytes and hooks.py joins the two.
"""
