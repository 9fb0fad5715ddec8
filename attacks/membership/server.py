"""Attacks of an honest but curious server, who sees every party's answer by itself: an upper bound.

Each party's answer is a model that nobody else took part in (the isolation of Nasr et al. 2019, given for
free). `measure` reads off all of them how well they fit each candidate; every attack is a function of
these numbers. Under secure aggregation the server sees one answer a round, the mean of all, and what isolates
a party is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from attacks.declaration import ALIKE_PARTIES, EVERY_UPDATE, FITTED, PULLED, attack
from attacks.membership import update_regression
from attacks.signals import gradients, outputs
from attacks.views.server import ServerView
from attacks.views.settings import Weights, module_of
from fedsim.core.data.records import Records

AGGREGATE = -1
"""Stands for the party where secure aggregation shows only the mean of all."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """How each answer treats each candidate; NaN where a party did not answer in a round.

    Gradients are measured on first use, so that a model without per-record gradients (a recurrent one) still
    serves the attacks that need none.

    parties: (K,) int, partition ids; `AGGREGATE` alone under secure aggregation
    phi: (T, K, n) float64, the scaled logit φ of w^k_t, in whose order −ℓ(w^k_t; z) is
    measure_cosine, measure_part: make `cosine` and `part`
    candidate_party: (n,) int, −1 where it is not told; victims: partition ids that a candidate can be of
    """

    parties: np.ndarray
    phi: np.ndarray
    measure_cosine: Callable[[], np.ndarray]
    measure_part: Callable[[], np.ndarray]
    candidate_party: np.ndarray
    victims: np.ndarray

    @property
    def cosine(self) -> np.ndarray:
        """(T, K, n) float64, cos(−∇ℓ(w_{t−1}; z), w^k_t − w_{t−1})."""
        return self.measure_cosine()

    @property
    def part(self) -> np.ndarray:
        """(K, n) float64, t-statistic of the candidate's part in the party's updates."""
        return self.measure_part()

    @property
    def loss(self) -> np.ndarray:
        """(T, K, n) float64, ℓ(w^k_t; z)."""
        with np.errstate(invalid="ignore"):  # NaN: no answer
            return np.logaddexp(0.0, -self.phi)

    @property
    def secure(self) -> bool:
        """Whether only the aggregate was seen."""
        return bool((self.parties == AGGREGATE).all())


def measure(view: ServerView, candidates: Records) -> Measurements:
    """Measure every answer in ``view`` on every candidate."""
    answers = view.answers or {t: {AGGREGATE: mean} for t, mean in view.sums.items()}
    parties = sorted({k for sent in answers.values() for k in sent})
    phi = np.full((len(answers), len(parties), len(candidates)), np.nan)
    for row, t in enumerate(sorted(answers)):
        for k, weights in answers[t].items():
            logits = outputs.logits(module_of(view.settings, weights), candidates.features)
            phi[row, parties.index(k)] = outputs.scaled_logit(logits, candidates.labels)

    @cache
    def cosine() -> np.ndarray:
        cosines = np.full(phi.shape, np.nan)
        for row, t in enumerate(sorted(answers)):
            for k, weights in answers[t].items():
                cosines[row, parties.index(k)] = _cosine(view, t, weights, candidates)
        return cosines

    @cache
    def part() -> np.ndarray:
        parts = np.full(phi.shape[1:], np.nan)
        for together, rounds in _answered_alike(answers).items():
            steps = [
                (module_of(view.settings, view.models[t - 1]), _updates(view, t, together)) for t in rounds
            ]
            parts[[parties.index(k) for k in together]] = update_regression.decode(steps, candidates).T
        return parts

    candidate_party, victims = np.asarray(view.candidate_party), np.array(view.victims)
    return Measurements(np.array(parties), phi, cosine, part, candidate_party, victims)


def _answered_alike(answers: dict[int, dict[int, Weights]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return parties that answered in the same rounds → those rounds: their regressions share a matrix."""
    rounds: dict[int, list[int]] = {}
    for t in sorted(answers):
        for k in answers[t]:
            rounds.setdefault(k, []).append(t)
    alike: dict[tuple[int, ...], list[int]] = {}
    for k in sorted(rounds):
        alike.setdefault(tuple(rounds[k]), []).append(k)
    return {tuple(together): seen for seen, together in alike.items()}


def _updates(view: ServerView, t: int, parties: Sequence[int]) -> list[Weights]:
    before = view.models[t - 1]
    sent = [view.sums[t] if k == AGGREGATE else view.answers[t][k] for k in parties]
    return [
        {name: answer[name].astype(np.float64) - start for name, start in before.items()} for answer in sent
    ]


def _cosine(view: ServerView, t: int, answer: Weights, candidates: Records) -> np.ndarray:
    """Return cos(−∇ℓ(w_{t−1}; z), answer − w_{t−1}), (n,) float64; a vanished one counts as a right angle."""
    before = view.models[t - 1]
    module = module_of(view.settings, before)
    update = {name: answer[name].astype(np.float64) - before[name] for name in before}
    length = np.sqrt(sum(np.sum(update[name] ** 2) for name, _ in module.named_parameters()))
    dot, norm = gradients.gradient_products(module, candidates, update)
    return np.divide(-dot, norm * length, out=np.zeros_like(dot), where=norm * length != 0)


def last(values: np.ndarray) -> np.ndarray:
    """Return each party's values in the last round in which it answered, (T, K, n) → (K, n)."""
    result = values[0].copy()
    for later in values[1:]:
        np.copyto(result, later, where=~np.isnan(later))
    return result


def over_rounds(values: np.ndarray) -> np.ndarray:
    """Return each party's mean over the rounds in which it answered, (T, K, n) → (K, n)."""
    answered = ~np.isnan(values)
    total = np.where(answered, values, 0.0).sum(axis=0)
    return np.where(answered.any(axis=0), total / np.maximum(answered.sum(axis=0), 1), np.nan)


@attack(
    "loss",
    observers=("server",),
    sees=EVERY_UPDATE,
    assumes=FITTED,
    source="Nasr et al. 2019 (isolation)",
    reads="any",
)
def isolated_loss(seen: Measurements, rng: np.random.Generator) -> np.ndarray:
    """Return φ of the party's own last answer, (n,) float64: the order of −ℓ (Nasr et al. 2019)."""
    return _of_its_party(seen, last(seen.phi))


@attack(
    "loss-series",
    observers=("server",),
    sees=EVERY_UPDATE,
    assumes=FITTED,
    source="Zhu et al. 2025 (baseline)",
    reads="any",
)
def isolated_loss_series(seen: Measurements, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of −ℓ(w^k_t; z), (n,) float64 (loss series of Zhu et al. 2025)."""
    return _of_its_party(seen, over_rounds(-seen.loss))


@attack("update-cosine", observers=("server",), sees=EVERY_UPDATE, assumes=PULLED, source="Li et al. 2023")
def isolated_update_cosine(seen: Measurements, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of cos(−∇ℓ(w_{t−1}; z), w^k_t − w_{t−1}), (n,) float64 (Li et al. 2023)."""
    return _of_its_party(seen, over_rounds(seen.cosine))


@attack(
    "update-regression",
    observers=("server",),
    sees=EVERY_UPDATE,
    assumes=PULLED,
    source="ours: all candidates decoded together",
)
def isolated_update_regression(seen: Measurements, rng: np.random.Generator) -> np.ndarray:
    """Return the candidate's part in the party's updates of all rounds, (n,) float64 (ours)."""
    return _of_its_party(seen, seen.part)


@attack(
    "fedmia",
    observers=("server",),
    sees=EVERY_UPDATE,
    assumes=ALIKE_PARTIES,
    source="Zhu et al. 2025 (FedMIA-II)",
    isolates=True,
)
def fedmia(seen: Measurements, rng: np.random.Generator) -> np.ndarray:
    """Return FedMIA-II, (n,) float64 in [0, 1]: `likelihood` of the update cosine (Zhu et al. 2025)."""
    return _of_its_party(seen, likelihood(seen.cosine))


@attack(
    "fedmia-loss",
    observers=("server",),
    sees=EVERY_UPDATE,
    assumes=ALIKE_PARTIES,
    source="Zhu et al. 2025 (FedMIA-I)",
    isolates=True,
    reads="any",
)
def fedmia_loss(seen: Measurements, rng: np.random.Generator) -> np.ndarray:
    """Return FedMIA-I, (n,) float64 in [0, 1]: `likelihood` of −ℓ, on the scale of φ (Zhu et al. 2025)."""
    return _of_its_party(seen, likelihood(seen.phi))


def likelihood(values: np.ndarray) -> np.ndarray:
    """Return the mean over rounds of Φ((x^k_t − μ_t) / σ_t), (T, K, n) → (K, n) float64.

    μ_t, σ_t²: mean and variance (of the sample, as in LiRA) of what the other parties' answers of round t
    show on the same record, who cannot hold it if party k does. A round with fewer than two others
    says nothing and is left out.

    Source: Zhu et al. 2025 (FedMIA), the one-tailed likelihood-ratio test of its steps 2 and 3.
    """
    from scipy.special import ndtr

    answered = ~np.isnan(values)
    x = np.where(answered, values, 0.0)
    others = answered.sum(axis=1, keepdims=True) - answered
    # Centred first: the sum of squares is taken apart, which would cost digits far from 0.
    centre = x.sum(axis=1, keepdims=True) / np.maximum(answered.sum(axis=1, keepdims=True), 1)
    x = np.where(answered, x - centre, 0.0)
    mean = (x.sum(axis=1, keepdims=True) - x) / np.maximum(others, 1)
    square = ((x**2).sum(axis=1, keepdims=True) - x**2) / np.maximum(others, 1)
    deviation = np.sqrt(np.maximum(square - mean**2, np.finfo(np.float32).eps ** 2))
    p = ndtr((x - mean) / deviation)
    return over_rounds(np.where(answered & (others >= 2), p, np.nan))


def _of_its_party(seen: Measurements, values: np.ndarray) -> np.ndarray:
    """Return each candidate's value at its party, (K, n) → (n,); if not told, the largest of all victims'."""
    if seen.secure:
        return values[0]
    held = np.where(np.isin(seen.parties, seen.victims)[:, None], values, np.nan)
    its_party = seen.candidate_party[None] == seen.parties[:, None]
    held = np.where((seen.candidate_party < 0) | its_party, held, np.nan)
    best = np.where(np.isnan(held), -np.inf, held).max(axis=0)
    return np.where(np.isnan(held).all(axis=0), np.nan, best)
