"""Attacks on what a federation shows over its rounds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from attacks.declaration import EVERY_MODEL, FITTED, LIKE_ITS_OWN, PULLED, attack
from attacks.membership import crossfit
from attacks.signals import gradients, outputs
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core.data.records import Records
from fedsim.core.privacy.plan import steps_per_round


@attack("loss-series", sees=EVERY_MODEL, assumes=FITTED, source="Zhu et al. 2025 (baseline)", reads="any")
def loss_series(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean of −ℓ(w_t; z) over the rounds t ≥ 1 seen, (n,) float64 (baseline of Zhu et al. 2025).

    A record that was fitted early and stayed fitted stands out more than in the final model alone.
    """
    total = np.zeros(len(candidates))
    for t in view.trained_rounds:
        total -= outputs.loss(view.logits(t, candidates), candidates.labels)
    return total / max(len(view.trained_rounds), 1)


@attack("update-cosine", sees=EVERY_MODEL, assumes=PULLED, source="Li et al. 2023")
def update_cosine(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of cos(−∇ℓ(w_{t−1}; z), Δ_t), (n,) float64 (Li et al. 2023).

    Δ_t is the others' part of the step from w_{t−1} to w_t: a member pulled it towards its own descent
    direction. A vanished gradient or step counts as a right angle, and so does a view of no step at all.
    """
    total, steps = np.zeros(len(candidates)), 0
    for dot, norm, length in _steps(view, candidates):
        total += _ratio(-dot, norm * length)
        steps += 1
    return total / max(steps, 1)


@attack("update-difference", sees=EVERY_MODEL, assumes=PULLED, source="Li et al. 2023")
def update_difference(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of ‖G_t‖² − ‖G_t − ∇ℓ(w_{t−1}; z)‖², (n,) float64 (Li et al. 2023, eq. 5).

    G_t is the sum of the gradients that made the others' step Δ_t: G_t = −Δ_t · `gradients_in_a_step`, so
    that a member's own gradient g is in it about once and taking it out makes it shorter. The score is
    2⟨G_t, g⟩ − ‖g‖²; with the wrong sign or scale one of the two terms would drown the other. A view of no
    step scores 0.
    """
    scale = gradients_in_a_step(view.settings, len(view.own_train))
    total, steps = np.zeros(len(candidates)), 0
    for dot, norm, _ in _steps(view, candidates):
        total += -2 * scale * dot - norm**2
        steps += 1
    return total / max(steps, 1)


def gradients_in_a_step(settings: PublicSettings, own_size: int) -> float:
    """Return c, so that a record's gradient g moves the global model by about −g / c in one round.

    A party of n records makes S steps of size η on means over its batches, so that each record adds
    −η g S / n to its answer, which has the weight n / N among the participants' N records: c = N / (η S).
    Momentum m makes a step 1 / (1 − m) times as long. Of parties with and without DP-SGD, which train
    differently, η S is the mean. Exact for plain SGD while the gradient stays as it was, a convention for
    Adam, and under DP-SGD as far as g is not clipped.
    own_size: stands for every party's n where the sizes are not public.
    """
    sizes = settings.sizes or (own_size,) * settings.parties
    per_party = sum(sizes) / len(sizes)

    def way(private: bool) -> float:  # η S / (1 − m)
        training = settings.training.under_dp() if private else settings.training
        return training.lr * steps_per_round(training, round(per_party)) / (1 - training.momentum)

    ways = [way(plan is not None) for plan in settings.privacy or (None,)]
    return per_party * settings.participants / (sum(ways) / len(ways))


@attack("confidence-series", sees=EVERY_MODEL, assumes=LIKE_ITS_OWN, source="Gu et al. 2022")
def confidence_series(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return a classifier's log-odds of 'member' from (p_y at w_t)_t, (n,) float64 (CS-MIA, Gu et al. 2022).

    The classifier is a logistic regression on the owner's own series, see `crossfit.logistic`; the paper's is
    a network, for which one party's records are few. A view of no trained round scores 0.
    """
    rounds = view.trained_rounds
    if not rounds:
        return np.zeros(len(candidates))

    def features(records: Records) -> np.ndarray:
        losses = [outputs.loss(view.logits(t, records), records.labels) for t in rounds]
        return np.exp(-np.stack(losses, axis=1))

    return crossfit.cross_fitted(view, candidates, features, crossfit.logistic, rng)


def _steps(view: ParticipantView, candidates: Records) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield ⟨g, Δ_t⟩, ‖g‖ (n,) each and ‖Δ_t‖ of every step seen, g = ∇ℓ(w_{t−1}; z)."""
    for t in view.trained_rounds:
        update = view.others_update(t)
        if update is not None:
            module = view.module(view.models[t - 1])
            length = np.sqrt(sum(np.sum(update[name] ** 2) for name, _ in module.named_parameters()))
            dot, norm = gradients.gradient_products(module, candidates, update)
            yield dot, norm, length


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    # NaN is not 0: a diverged model must not pass for a right angle.
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
