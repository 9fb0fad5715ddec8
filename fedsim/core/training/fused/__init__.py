"""Many models of one architecture, trained one after the other in the processor's cache."""

from __future__ import annotations

import logging
from functools import cache


@cache
def available() -> bool:
    """Tell whether numba can be imported; if not, as under a NumPy newer than it knows, say so once."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # whatever an import may raise
        reason = str(error).strip().partition("\n")[0]
        logging.getLogger("fedsim").warning(
            "numba cannot be imported (%s: %s): models are trained the slower way, to the same figures but "
            "for rounding",
            type(error).__name__,
            reason,
        )
        return False
    return True
