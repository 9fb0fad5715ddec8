"""Everything that can go wrong in one sentence.

FedsimError          the run cannot go on (exit code 1)
└── InputError       something a person wrote or chose is wrong (exit code 2)

An error's text names the file, the key, the value and the nearest valid choice (DESIGN §10). Anything
else that is raised is a bug and keeps its stack trace.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_WORD = 500
"""Characters between blanks that an error shows: as long as a path may well be."""

_UNSAFE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x1f\x7f-\x9f]")
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD},}}")


class FedsimError(Exception):
    """The run cannot go on; the text says why in one sentence.

    What it quotes of files and values is shown without terminal escapes and control characters, and unbroken
    runs of characters cut to `LONGEST_WORD`.
    """

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        safe = _UNSAFE.sub(" ", text)
        super().__init__(_LONG_WORD.sub(lambda match: f"{match[0][: LONGEST_WORD - 1]}…", safe))


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


PLAIN_LENGTH = 300
"""Characters of someone else's error that are shown and kept."""

_ADDRESS = re.compile(r"(?: at)? 0x[0-9a-fA-F]{6,}")


def plainly(error: BaseException | str) -> str:
    """Return what an error of someone else's code says: one short line, the same on every run.

    Without terminal escapes, control characters and memory addresses, cut to `PLAIN_LENGTH`. An error of
    fedsim's own is a sentence already; any other is named by its type.
    """
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be had)"
    text = _ADDRESS.sub("", _UNSAFE.sub(" ", text[: 20 * PLAIN_LENGTH]))
    if isinstance(error, BaseException) and not isinstance(error, FedsimError):
        text = f"{type(error).__name__}: {text}" if text.strip() else type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= PLAIN_LENGTH else f"{text[: PLAIN_LENGTH - 1]}…"
