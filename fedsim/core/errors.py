"""Everything that can go wrong in one sentence.

FedsimError          the run cannot go on (exit code 1)
└── InputError       something a person wrote or chose is wrong (exit code 2)

An error's text names the file, the key, the value and the nearest valid choice (DESIGN §10). Anything
else that is raised is a bug and keeps its stack trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedsimError(Exception):
    """The run cannot go on; the text says why in one sentence."""

    exit_code = 1


class InputError(FedsimError):
    """Something a person wrote or chose is wrong; the text names it and what is valid."""

    exit_code = 2


def suggestion(value: object, choices: Iterable[str], limit: int = 12) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss of one of ``choices``, else a list of them."""
    known = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(value).lower(), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    more = ", …" if len(known) > limit else ""
    return f"; valid: {', '.join(known[:limit])}{more}"
