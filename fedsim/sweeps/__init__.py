"""Sweeps: many runs that differ in a few keys, and one table of what they found."""
