"""A party's local training: the one definition of a step, and its stacked twin."""
