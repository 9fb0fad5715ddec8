"""Joint inference: the membership of all records decoded together."""
