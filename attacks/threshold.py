"""Attacks on the answers of the final global model: one number per candidate, then a threshold."""

from __future__ import annotations

import numpy as np

from attacks import signals
from attacks.observer import ParticipantView
from fedsim.data.records import Records


def loss(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return −ℓ(w_T; z), (n,) float64: members were fitted (Yeom et al. 2018)."""
    return -signals.loss(view.logits(view.final_round, candidates), candidates.labels)


def confidence(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return log max_i p_i, (n,) float64: needs no label (Salem et al. 2019)."""
    return signals.confidence(view.logits(view.final_round, candidates))


def entropy(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return Σ p_i log p_i, (n,) float64: needs no label (Salem et al. 2019)."""
    return -signals.entropy(view.logits(view.final_round, candidates))


def modified_entropy(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return (1 − p_y) log p_y + Σ_{i≠y} p_i log(1 − p_i), (n,) float64 (Song & Mittal 2021)."""
    return -signals.modified_entropy(view.logits(view.final_round, candidates), candidates.labels)
