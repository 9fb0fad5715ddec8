"""Who was never in the federation: it asks the released model, through an output policy, for no weights.

What a policy leaves of the probabilities p is made whole again where it can be (`completed`); the attacks are
those on one model, on log p in place of the logits. Names begin with 'outsider/'.

'laplace' and 'gaussian' give a guarantee: whatever changes of the model, a vector of probabilities moves by
at most 2 in ℓ1 and √2 in ℓ2, so that noise in proportion makes one answer (ε, 0)- or (ε, δ)-DP. k answers are
(kε, kδ)-DP by basic composition (Dwork & Roth 2014, theorem 3.16): see `spent`. The noise is a simulation's,
in floating point; a real service needs a sampler that is safe against Mironov 2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from attacks import signals
from attacks.observer import OutsiderView
from fedsim import gaussian
from fedsim.data.records import Records
from fedsim.scenario import OutputPolicy

COPIES = 32
"""Noisy copies of a record, as many as the query budget allows."""

NOISE = 0.5
"""Scale of the copies' noise, as a multiple of the candidates' own: an outsider has no other records."""

Score = Callable[[OutsiderView, Records, np.random.Generator], np.ndarray]


def released(
    logits: Callable[[np.ndarray], np.ndarray], classes: int, policy: OutputPolicy, rng: np.random.Generator
) -> OutsiderView:
    """Return the view of one who can ask a model within the policy's query budget.

    logits: features (n, …) float32 → (n, classes) float64. They stay behind the policy.
    rng: of the noise in the answers, drawn anew at every query.
    """
    left = policy.queries

    def ask(features: np.ndarray) -> np.ndarray:
        nonlocal left
        if left is not None:
            if len(features) > left:
                raise RuntimeError(f"{len(features)} queries, but {left} of {policy.queries} are left")
            left -= len(features)
        return answered(_softmax(logits(features)), policy, rng)

    return OutsiderView(ask, classes, policy.queries)


def answered(p: np.ndarray, policy: OutputPolicy, rng: np.random.Generator) -> np.ndarray:
    """Return what ``policy`` tells of probabilities p, (n, classes) float64; NaN where nothing is told.

    A 'label' is told as probability 1 of the largest class and 0 of the others, so that every attack becomes
    the gap attack. A model that has no answer (NaN) gives none.
    """
    if policy.policy == "rounded":
        return np.round(p, policy.digits)
    if policy.policy == "label":
        return np.where(np.isnan(p).any(axis=1, keepdims=True), np.nan, _largest(p, 1).astype(np.float64))
    if policy.policy == "top-k":
        return np.where(_largest(p, policy.top), p, np.nan)
    if policy.policy == "temperature":
        with np.errstate(divide="ignore"):
            return _softmax(np.log(p) / policy.temperature)
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


def answers_asked(name: str, candidates: int, queries: int | None) -> int:
    """Return how many answers the attack ``name`` asks for, about so many candidates within the budget."""
    n = candidates if queries is None else min(candidates, queries)
    return n * _copies(n, queries) if name == "outsider/noise-robustness" else n


def completed(told: np.ndarray) -> np.ndarray:
    """Return probabilities (n, classes) float64: classes of which nothing was told share the rest alike."""
    hidden = np.isnan(told)
    missing = np.clip(1 - np.nansum(told, axis=1, keepdims=True), 0, 1)
    shared = missing / np.maximum(hidden.sum(axis=1, keepdims=True), 1)
    whole = np.where(hidden, shared, told)
    return np.where(hidden.all(axis=1, keepdims=True), np.nan, whole)


def gap(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return 1[argmax p = y], (n,) float64 (Yeom et al. 2018); NaN beyond the query budget, as all scores."""
    return signals.correct(_log_p(view, candidates), candidates.labels)


def loss(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return log p_y − log Σ_{i≠y} p_i, (n,) float64: the order of −ℓ (Yeom et al. 2018)."""
    return signals.scaled_logit(_log_p(view, candidates), candidates.labels)


def confidence(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return log max_i p_i, (n,) float64 (Salem et al. 2019)."""
    return signals.confidence(_log_p(view, candidates))


def entropy(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return Σ p_i log p_i, (n,) float64 (Salem et al. 2019)."""
    return -signals.entropy(_log_p(view, candidates))


def modified_entropy(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return (1 − p_y) log p_y + Σ_{i≠y} p_i log(1 − p_i), (n,) float64 (Song & Mittal 2021)."""
    return -signals.modified_entropy(_log_p(view, candidates), candidates.labels)


def noise_robustness(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the share of noisy copies of x whose most likely class is y, (n,) float64 in [0, 1].

    `COPIES` copies of each record, fewer where the query budget is smaller; an outsider has no records of
    its own on which to choose the noise's scale. Source: Choquette-Choo et al. 2021, §3.2.
    """
    n = _affordable(view, len(candidates))
    copies = _copies(n, view.queries)
    scale = NOISE * np.sqrt(candidates.features.var(axis=0, dtype=np.float64).mean())
    shifts = (scale * rng.normal(size=(copies, *candidates.shape))).astype(np.float32)
    kept = np.full(len(candidates), np.nan)
    answers = [completed(view.ask(candidates.features[:n] + shift)) for shift in shifts]
    kept[:n] = np.mean([signals.correct(p, candidates.labels[:n]) for p in answers], axis=0)
    return kept


SUITE: dict[str, Score] = {
    "outsider/gap": gap,
    "outsider/loss": loss,
    "outsider/confidence": confidence,
    "outsider/entropy": entropy,
    "outsider/modified-entropy": modified_entropy,
    "outsider/noise-robustness": noise_robustness,
}


def _log_p(view: OutsiderView, candidates: Records) -> np.ndarray:
    """Return log p of each candidate, (n, classes) float64; NaN beyond the query budget.

    A probability that was told to be 0 counts as the smallest that there is, so that its logarithm is finite.
    """
    n = _affordable(view, len(candidates))
    p = np.full((len(candidates), view.classes), np.nan)
    p[:n] = completed(view.ask(candidates.features[:n]))
    return np.log(np.maximum(p, np.finfo(np.float64).tiny))


def _affordable(view: OutsiderView, n: int) -> int:
    return n if view.queries is None else min(n, view.queries)


def _copies(n: int, queries: int | None) -> int:
    return COPIES if queries is None else max(1, min(COPIES, queries // n))


def _distribution(values: np.ndarray) -> np.ndarray:
    """Return noisy probabilities (n, classes) cut to [0, 1], scaled to the sum 1; alike where all are 0."""
    kept = np.clip(values, 0, 1)
    total = kept.sum(axis=1, keepdims=True)
    return np.where(total == 0, 1 / kept.shape[1], kept / np.where(total == 0, 1, total))


def _largest(p: np.ndarray, k: int) -> np.ndarray:
    """Return a mask (n, classes) of the ``k`` largest of each row; of equal ones the first."""
    order = np.argsort(-p, axis=1, kind="stable")[:, :k]
    mask = np.zeros(p.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
