"""Torch models by name or of one's own, their weights, and what differential privacy asks of them."""
