"""What an adversary does with what it saw."""
