"""Torch models by name or the user's own, their weights, and what differential privacy asks of them."""
