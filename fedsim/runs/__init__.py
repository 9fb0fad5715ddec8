"""A run: from a scenario to its result."""
