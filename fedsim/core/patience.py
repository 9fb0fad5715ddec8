"""How long to wait between two looks for something that another process brings."""

from __future__ import annotations

import time

_SHARE = 0.2


class Patience:
    """Pauses of a fifth of what has been waited so far: what comes soon is found soon, and looks stay few.

    shortest, longest: seconds that a pause has at least and at most
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest, self._longest = shortest, longest
        self.renew()

    def renew(self) -> None:
        """Begin again: what was waited for has come, or another thing is waited for."""
        self._since = time.monotonic()

    def wait(self, seconds: float = float("inf")) -> None:
        """Pause, for ``seconds`` at most."""
        waited = time.monotonic() - self._since
        time.sleep(max(0.0, min(seconds, self._longest, max(self._shortest, _SHARE * waited))))
