"""Output policies: what a released model lets out, and what its answers cost where an ε is stated."""

from __future__ import annotations

import math

import numpy as np

from fedsim.core.privacy import gaussian
from fedsim.core.scenario.protection import OutputPolicy


def answered(p: np.ndarray, policy: OutputPolicy, rng: np.random.Generator) -> np.ndarray:
    """Return what ``policy`` releases of probabilities p, (n, classes) float64; NaN where nothing.

    A 'label' is released as probability 1 of the largest class and 0 of the others, so that every attack
    becomes the gap attack. A model that has no answer (NaN) gives none.
    """
    if policy.policy == "rounded":
        return np.round(p, policy.digits)
    if policy.policy == "label":
        return np.where(np.isnan(p).any(axis=1, keepdims=True), np.nan, _largest(p, 1).astype(np.float64))
    if policy.policy == "top-k":
        return np.where(_largest(p, policy.top), p, np.nan)
    if policy.policy == "temperature":
        with np.errstate(divide="ignore"):
            return softmax(np.log(p) / policy.temperature)
    if policy.policy == "noisy":
        return _distribution(p + rng.normal(0, policy.noise, p.shape))
    if policy.policy in ("laplace", "gaussian"):
        # That a model has no answer is a fact about it as well: the noise must cover it.
        known = np.where(np.isnan(p).any(axis=1, keepdims=True), 1 / p.shape[1], p)
        draw = rng.laplace if policy.policy == "laplace" else rng.normal
        return _distribution(known + draw(0, answer_noise(policy), p.shape))
    return p


def answer_noise(policy: OutputPolicy) -> float:
    """Return the scale b of Laplace noise, or the standard deviation σ of Gaussian noise, of one answer.

    b = 2/ε; σ = √2 z with z of the analytic Gaussian mechanism (`gaussian.noise_for`).
    """
    if policy.policy == "laplace":
        return 2 / policy.epsilon
    return math.sqrt(2) * gaussian.noise_for(policy.epsilon, policy.delta)


def spent(policy: OutputPolicy, answers: int) -> tuple[float, float] | None:
    """Return (ε, δ) of so many answers together, by basic composition; None where a policy states none."""
    if policy.policy not in ("laplace", "gaussian"):
        return None
    return answers * policy.epsilon, answers * policy.delta if policy.policy == "gaussian" else 0.0


def completed(released: np.ndarray) -> np.ndarray:
    """Return probabilities (n, classes) float64: classes without a released probability share the rest."""
    hidden = np.isnan(released)
    missing = np.clip(1 - np.nansum(released, axis=1, keepdims=True), 0, 1)
    shared = missing / np.maximum(hidden.sum(axis=1, keepdims=True), 1)
    whole = np.where(hidden, shared, released)
    return np.where(hidden.all(axis=1, keepdims=True), np.nan, whole)


def _distribution(values: np.ndarray) -> np.ndarray:
    """Return noisy probabilities (n, classes) cut to [0, 1], scaled to the sum 1; uniform where all are 0."""
    clipped = np.clip(values, 0, 1)
    total = clipped.sum(axis=1, keepdims=True)
    return np.where(total == 0, 1 / clipped.shape[1], clipped / np.where(total == 0, 1, total))


def _largest(p: np.ndarray, k: int) -> np.ndarray:
    """Return a mask (n, classes) of the ``k`` largest of each row; of equal ones the first."""
    order = np.argsort(-p, axis=1, kind="stable")[:, :k]
    mask = np.zeros(p.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (n, classes) of logits (n, classes)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
