"""Membership inference that reads a view: models, updates or answers."""
