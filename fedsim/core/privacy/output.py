"""Output policies: what a released model lets out, and what its answers cost where an ε is stated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.privacy import gaussian
from fedsim.core.scenario.protection import STATES_EPSILON, OutputPolicy

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Backing:
    """What some policies need beside a model's probabilities.

    references: (R, classes) float64, the model's answers on random records, for 'hamp'
    guard: the defender's classifier, for 'memguard'
    voters: members of an ensemble of which p are the shares of votes, for 'votes'
    """

    references: np.ndarray | None = None
    guard: nn.Module | None = None
    voters: int = 0


NO_BACKING = Backing()


def answered(
    p: np.ndarray, policy: OutputPolicy, rng: np.random.Generator, backing: Backing = NO_BACKING
) -> np.ndarray:
    """Return what ``policy`` releases of probabilities p, (n, classes) float64; NaN where nothing.

    A 'label' is released as probability 1 of the largest class and 0 of the others, so that every attack
    becomes the gap attack; so is the winner of 'votes'. A model that has no answer (NaN) gives none.

    Raises:
        ValueError: the policy needs a backing that is not there.
    """
    if policy.policy in BACKED:
        return BACKED[policy.policy](p, policy, rng, backing)
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


def _in_random_order_of_size(
    p: np.ndarray, policy: OutputPolicy, rng: np.random.Generator, backing: Backing
) -> np.ndarray:
    """Return the scores of a random record in the order of p's (HAMP, Chen & Pattabiraman 2024, §IV-C)."""
    if backing.references is None:
        raise ValueError("the policy 'hamp' needs the model's answers on random records")
    chosen = backing.references[rng.integers(len(backing.references), size=len(p))]
    ranks = np.argsort(np.argsort(p, axis=1, kind="stable"), axis=1)
    told = np.take_along_axis(np.sort(chosen, axis=1), ranks, axis=1)
    return np.where(np.isnan(p).any(axis=1, keepdims=True), np.nan, told)


def _guarded(p: np.ndarray, policy: OutputPolicy, rng: np.random.Generator, backing: Backing) -> np.ndarray:
    from fedsim.core.privacy import memguard

    if backing.guard is None:
        raise ValueError("the policy 'memguard' needs the defender's classifier")
    return memguard.guarded(p, backing.guard, policy.distortion, rng.random(len(p)))


def _voted(p: np.ndarray, policy: OutputPolicy, rng: np.random.Generator, backing: Backing) -> np.ndarray:
    """Return the winner of counts + Lap(2/ε), as a 'label' (PATE, Papernot et al. 2017, eq. 1).

    Formal guarantee:
        (ε, 0)-DP for one record of one party, where it can have changed one member's vote alone: two counts
        then move by 1.
    """
    if not backing.voters:
        raise ValueError("the policy 'votes' needs an ensemble of models that were trained apart")
    counts = np.round(p * backing.voters)
    return _largest(counts + rng.laplace(0, 2 / policy.epsilon, p.shape), 1).astype(np.float64)


BACKED = {"hamp": _in_random_order_of_size, "memguard": _guarded, "votes": _voted}
"""Policies that need a `Backing`."""


def answer_noise(policy: OutputPolicy) -> float:
    """Return the scale b of Laplace noise, or the standard deviation σ of Gaussian noise, of one answer.

    b = 2/ε; σ = √2 z with z of the analytic Gaussian mechanism (`gaussian.noise_for`).
    """
    if policy.policy == "laplace":
        return 2 / policy.epsilon
    return math.sqrt(2) * gaussian.noise_for(policy.epsilon, policy.delta)


def spent(policy: OutputPolicy, answers: int) -> tuple[float, float] | None:
    """Return (ε, δ) of so many answers together, by basic composition; None where a policy states none."""
    if policy.policy not in STATES_EPSILON:
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
