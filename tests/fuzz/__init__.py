"""What a person, a disk or a stranger may do to scenarios and run folders, tried many times over.

`python -m tests.fuzz` (from the checkout) tries everything and prints counts; `test_fuzz` a seeded sample.
"""
