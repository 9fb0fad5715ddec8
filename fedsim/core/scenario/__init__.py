"""Scenarios: one validated TOML file describes one experiment."""
