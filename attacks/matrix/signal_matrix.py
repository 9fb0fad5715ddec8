"""Signals × memberships: the one input of every attack that compares the target with shadow models.

A row per shadow federation, a column per record of the adversary's pool (the candidates first). The same
arrays with one shadow in the place of the target are a rehearsal whose truth the adversary knows, on
which thresholds and learned attacks are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class SignalMatrix:
    """Scaled logits φ (Carlini et al. 2022, §IV-C) of a target and of S shadow federations on n records.

    target: (R, n) float32, φ of the target's global model at each of ``rounds``; the last one is w_T (an
        early one where only the first rounds were simulated)
    shadows: (S, R, n) float32, the same of the shadows
    inside: (S, n) int, the party that the record was a member of in that shadow, −1 where of none
    rounds: (R,) int, ascending
    labels: (n,) int64
    party: (n,) int, the party that the record belongs to, member or not; −1 where that is not known
    target_logits, shadow_logits: (n, C) and (S, n, C) float32 at w_T, None unless asked for
    target_weights, shadow_weights: (K, P) and (S, K, P) float32, the weights at some of the rounds, flattened
        in the order of the state dict, None unless asked for; target and shadows start from the same w_0, so
        that weight space is aligned
    features: (n, …) float32, of the records, None where no attack asks for them
    beside: attack → (n,) float64, log-odds of the target's records from another source than shadows; 0 for a
        record about which nothing is said
    owned: share of the other parties' members in the shadows that are among the n records
    early: the same of more shadows, of the first rounds alone, the first S being these; None unless asked for
    """

    target: np.ndarray
    shadows: np.ndarray
    inside: np.ndarray
    rounds: np.ndarray
    labels: np.ndarray
    party: np.ndarray
    target_logits: np.ndarray | None = None
    shadow_logits: np.ndarray | None = None
    target_weights: np.ndarray | None = None
    shadow_weights: np.ndarray | None = None
    features: np.ndarray | None = None
    owned: float = 1.0
    early: SignalMatrix | None = None
    beside: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shadows)

    @property
    def member(self) -> np.ndarray:
        """(S, n) bool, whether the record was a member in the shadow, in whatever party."""
        return self.inside >= 0

    def subset(self, shadows: np.ndarray) -> SignalMatrix:
        """Return the matrix with only these shadows (indices or a mask), of these alone; same target."""
        return replace(
            self,
            shadows=self.shadows[shadows],
            inside=self.inside[shadows],
            shadow_logits=None if self.shadow_logits is None else self.shadow_logits[shadows],
            shadow_weights=None if self.shadow_weights is None else self.shadow_weights[shadows],
            early=None,
            beside={},
        )
