"""Memory that a process has freed, and keeps."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Give what is free back to the system: milliseconds, after work that took much in small pieces.

    glibc keeps it in the hope of being asked for it again, which the next attack does in other pieces.
    Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
