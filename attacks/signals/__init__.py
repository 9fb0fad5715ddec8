"""Numbers read off a model, one per record."""
