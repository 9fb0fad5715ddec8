"""Filters of updates that federated frameworks ship as privacy, as they are shipped.

flower-local-dp   Flower's LocalDpMod (flwr 1.41): the update clipped to C, plus N(0, σ²) on every weight,
                  σ = Δ √(2 ln(1.25/δ)) / ε with a sensitivity Δ that its user states
gaussian          the same with the sensitivity that clipping to C gives, Δ = 2C
percentile        NVFlare's PercentilePrivacy: entries below a percentile of |Δw| become 0, others are clipped
                  to ±γ (after Shokri & Shmatikov 2015)
sparse-vector     NVFlare's SVTPrivacy: entries are chosen by a noisy threshold, noise is added to them, and
                  the others become 0. It draws those that get noise with replacement from those chosen: what
                  was chosen and not drawn goes out as it is

What each claims and what holds of it is `fedsim.core.privacy.shipped`'s. Steps are not divided out, as where
a trainer does not report them.
"""

from __future__ import annotations

import math

import numpy as np

from fedsim.core.scenario.protection import ShippedSettings


def filtered(update: np.ndarray, settings: ShippedSettings, stream: np.random.Generator) -> np.ndarray:
    """Return what the filter sends of an update (p,) float64."""
    if settings.mechanism == "percentile":
        return percentile(update, settings.percentile, settings.reach)
    if settings.mechanism == "sparse-vector":
        return sparse_vector(update, settings, stream)
    length = float(np.linalg.norm(update))
    clipped = update * min(1.0, settings.clipping_norm / length) if length else update
    return clipped + stream.normal(0, settings.deviation, update.shape)


def percentile(update: np.ndarray, share: float, reach: float) -> np.ndarray:
    """Return the update clipped to ±reach, with 0 below the ``share``-th percentile of |Δw|."""
    cutoff = np.percentile(np.abs(update), share)
    inside = (update > -cutoff) & (update < cutoff)
    return np.clip(np.where(inside, 0.0, update), -reach, reach)


def sparse_vector(update: np.ndarray, settings: ShippedSettings, stream: np.random.Generator) -> np.ndarray:
    """Return the update as SVTPrivacy sends it: ⌈share·p⌉ draws of the entries chosen get noise."""
    reach, sent = settings.reach, update.copy()
    wanted = min(math.ceil(update.size * settings.fraction), update.size)
    threshold = settings.tau + stream.laplace(scale=2 * reach / settings.epsilon)
    scale = 4 * reach * wanted / (settings.epsilon * (2 * wanted) ** (2 / 3))
    magnitude = np.abs(np.clip(update, -reach, reach))
    chosen, left = np.empty(0, dtype=np.int64), np.arange(update.size)
    while len(chosen) < wanted:
        above = magnitude[left] + stream.laplace(scale=scale, size=left.shape) >= threshold
        chosen, left = np.concatenate([chosen, left[above]]), left[~above]
    drawn = stream.choice(chosen, size=wanted)  # with replacement, as shipped
    noise = stream.laplace(scale=2 * reach / settings.noise_epsilon, size=wanted)
    sent[drawn] = np.clip(sent[drawn] + noise, -reach, reach)
    sent[left] = 0.0
    return sent
