"""Attacks on what a federation shows over its rounds."""

from __future__ import annotations

import numpy as np

from attacks import signals
from attacks.observer import ParticipantView
from fedsim.data.records import Records


def loss_series(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean of −ℓ(w_t; z) over the rounds t ≥ 1 seen, (n,) float64 (baseline of Zhu et al. 2025).

    A record that was fitted early and stayed fitted stands out more than in the final model alone.
    """
    total = np.zeros(len(candidates))
    for t in view.trained_rounds:
        total -= signals.loss(view.logits(t, candidates), candidates.labels)
    return total / max(len(view.trained_rounds), 1)


def update_cosine(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of cos(−∇ℓ(w_{t−1}; z), Δ_t), (n,) float64 (Li et al. 2023).

    Δ_t is the others' part of the step from w_{t−1} to w_t: a member pulled it towards its own descent
    direction. A vanished gradient or step counts as a right angle, and so does a view of no step at all.
    """
    total, steps = np.zeros(len(candidates)), 0
    for t in view.trained_rounds:
        update = view.others_update(t)
        if update is not None:
            module = view.module(view.models[t - 1])
            length = np.sqrt(sum(np.sum(update[name] ** 2) for name, _ in module.named_parameters()))
            dot, norm = signals.gradient_products(module, candidates, update)
            total += _ratio(-dot, norm * length)
            steps += 1
    return total / max(steps, 1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    # NaN is not 0: a diverged model must not pass for a right angle.
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
