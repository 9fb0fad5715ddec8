"""Data: named real sets, your own tables, parties and the membership game."""
