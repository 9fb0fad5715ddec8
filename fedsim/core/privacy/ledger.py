"""Everything that a party has spent so far, over all rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.core.privacy.accountants import Accountant, spent
from fedsim.core.privacy.rdp import Entry


@dataclass(frozen=True)
class Ledger:
    """Everything that a party has spent so far, over all rounds.

    entries: (noise multiplier, sample rate, steps), oldest first, equal neighbours merged

    Formal guarantee:
        If every step of a party's DP-SGD is entered, all that it sent in all rounds together is
        (`epsilon` (δ), δ)-DP for one record added or taken away, for any δ fixed beforehand. The numbers of
        steps must not depend on the records but through noisy weights; where they do so (early stopping),
        the plan's ε holds instead (Rogers et al. 2016). A ledger knows nothing of what was not entered.

    >>> ledger = Ledger().add(1.0, 0.1, 10).add(1.0, 0.1, 20)
    >>> ledger.entries
    ((1.0, 0.1, 30),)
    >>> 0 < ledger.epsilon(1e-5) < ledger.add(1.0, 0.1, 10).epsilon(1e-5)
    True
    """

    entries: tuple[Entry, ...] = ()

    def add(self, noise_multiplier: float, sample_rate: float, steps: int) -> Ledger:
        """Return the ledger with ``steps`` more steps in it."""
        if steps == 0:
            return self
        *older, (last_noise, last_rate, last_steps) = self.entries or ((0.0, 0.0, 0),)
        if (last_noise, last_rate) == (noise_multiplier, sample_rate):
            return Ledger((*older, (noise_multiplier, sample_rate, last_steps + steps)))
        return Ledger((*self.entries, (noise_multiplier, sample_rate, steps)))

    def epsilon(self, delta: float, accountant: Accountant = "prv") -> float:
        """Return the composed ε of all entries at ``delta``: an upper bound, 0 where nothing was spent."""
        return spent(self.entries, delta, accountant)[0]

    def accounted_by(self, delta: float, accountant: Accountant = "prv") -> Accountant:
        """Return the accountant that `epsilon` really uses.

        It is 'rdp' instead of 'prv' where σ is below 0.4, where the PRV grid would have more than 2²¹
        points (a matter of seconds), or where Opacus' discretisation refuses (δ close to machine
        precision).
        """
        return spent(self.entries, delta, accountant)[1]

    def to_config(self) -> dict[str, list[Any]]:
        """Return the entries as parallel lists, which is what a Flower ConfigRecord can hold."""
        return {
            "noise_multiplier": [noise for noise, _, _ in self.entries],
            "sample_rate": [rate for _, rate, _ in self.entries],
            "steps": [steps for _, _, steps in self.entries],
        }

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Ledger:
        """Return the ledger that `to_config` wrote.

        Raises:
            KeyError: a list is missing.
            ValueError: the lists differ in length.
        """
        columns = config["noise_multiplier"], config["sample_rate"], config["steps"]
        return Ledger(tuple((float(s), float(q), int(k)) for s, q, k in zip(*columns, strict=True)))
