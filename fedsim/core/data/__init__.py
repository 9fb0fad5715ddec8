"""Data: named real sets, tables of one's own, and parties."""
