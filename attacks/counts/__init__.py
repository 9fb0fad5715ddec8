"""How many, rather than who: members among candidates, and the share of a group at a party."""
