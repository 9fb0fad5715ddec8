"""What an adversary does with what it saw."""

from attacks.declaration import attack

__all__ = ["attack"]
