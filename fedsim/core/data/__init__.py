"""Data: named real sets, the user's own tables, and parties."""
