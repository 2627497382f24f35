"""A batch: thousands of flow runs in one task, one for each item."""
