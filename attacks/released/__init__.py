"""Attacks of an outsider on a released model, with what such a person really owns."""
