"""Folder names for parties, whatever script they are written in."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.core.files import slug

RESERVED = ("server",)


def slugs(parties: Sequence[str]) -> dict[str, str]:
    """Return a folder name for each party, no two alike whatever the file system makes of case."""
    taken = set(RESERVED)
    result = {}
    for number, name in enumerate(parties):
        plain = slug(name) or f"party-{number}"
        while plain.casefold() in taken:
            plain = f"{plain}-{number}"
        taken.add(plain.casefold())
        result[name] = plain
    return result
