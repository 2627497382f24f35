"""When to poll a flow run, and what to make of the responses."""
