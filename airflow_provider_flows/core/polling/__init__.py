"""When to poll a flow run, and what to conclude from the responses."""
