"""What records look like: from a model, or from an update."""
