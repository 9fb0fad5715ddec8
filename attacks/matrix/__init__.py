"""Membership inference that compares the target with shadow federations, by a matrix of signals."""
