"""The federation as its server sees it."""
