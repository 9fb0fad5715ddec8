"""Simulated rounds of single parties, and what they tell of the records in an observed update."""
