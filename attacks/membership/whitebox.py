"""Attacks that look inside the model: gradients and activations (Nasr, Shokri & Houmansadr 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attacks.declaration import EVERY_MODEL, FINAL_MODEL, FITTED, LIKE_ITS_OWN, attack
from attacks.membership import crossfit
from attacks.signals import gradients, outputs
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

ROUNDS = 5
"""Rounds that the attack network looks at, evenly spread; Nasr et al. take five as well (§IV-C)."""


@attack("gradient-norm", sees=FINAL_MODEL, assumes=FITTED, source="Nasr et al. 2019")
def gradient_norm(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return −‖∇_w ℓ(w_T; z)‖, (n,) float64: at a minimum, members' gradients vanish (Nasr et al. 2019)."""
    return -gradients.gradient_norms(view.module(view.final_model), candidates)


@attack("representation", sees=FINAL_MODEL, assumes=LIKE_ITS_OWN, source="Nasr et al. 2019")
def representation(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return a classifier's log-odds of 'member', (n,) float64 (after Nasr et al. 2019, §III).

    A logistic regression, see `crossfit.logistic`, on what w_T makes of a record: the penultimate
    activations, p, ℓ and the label. Each of the four weighs as much as the others, however wide it is: the
    owner's records are few, and a member shows in p and ℓ first.
    """
    module = view.module(view.final_model)

    def features(records: Records) -> np.ndarray:
        seen = view.logits(view.final_round, records)
        losses = outputs.loss(seen, records.labels)[:, None]
        inside = outputs.last_layer_inputs(module, records.features)
        of_label = np.eye(seen.shape[1])[records.labels]
        p = label_first(_softmax(seen), records.labels, seen)
        return np.hstack([p, losses, of_label, inside])

    def fit(known: np.ndarray, member: np.ndarray, rng: np.random.Generator) -> crossfit.Scorer:
        classes = view.settings.classes
        widths = [classes, 1, classes, known.shape[1] - 2 * classes - 1]
        return crossfit.logistic(known, member, rng, weight=1 / np.repeat(widths, widths), strength=0.1)

    return crossfit.cross_fitted(view, candidates, features, fit, rng)


@attack("white-box-network", sees=EVERY_MODEL, assumes=LIKE_ITS_OWN, source="Nasr et al. 2019")
def network(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return an attack network's log-odds of 'member', (n,) float64 (Nasr et al. 2019, §III and fig. 2).

    Its inputs are, at up to five rounds evenly spread, the gradient in the last layer, the activations that
    enter it, p and ℓ, and the label; see `attack_network`.
    """
    rounds = spread(view.trained_rounds, ROUNDS)
    if not rounds:
        return np.zeros(len(candidates))
    from attacks.membership import attack_network

    modules = {t: view.module(view.models[t]) for t in rounds}

    def features(records: Records) -> np.ndarray:
        parts = [_seen_at(view, t, modules[t], records) for t in rounds]
        return np.hstack([*parts, np.eye(view.settings.classes)[records.labels]])

    def fit(folds: Sequence[attack_network.Fold], rng: np.random.Generator) -> list[crossfit.Scorer]:
        return attack_network.fit(folds, rng, len(rounds), view.settings.classes)

    return crossfit.all_fitted(view, candidates, features, fit, rng)


def spread(rounds: list[int], count: int) -> list[int]:
    """Return at most ``count`` of the rounds, evenly spread, the last one among them."""
    if len(rounds) <= count:
        return rounds
    return [rounds[(i + 1) * len(rounds) // count - 1] for i in range(count)]


def label_first(values: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return ``values`` (n, C) with the label's column first, the others after it by falling logits.

    What membership does to an answer is then learnt once and not for every class.
    """
    keys = np.array(logits)
    keys[np.arange(len(labels)), labels] = np.inf
    return np.take_along_axis(values, np.argsort(-keys, axis=1, kind="stable"), axis=1)


def _seen_at(view: ParticipantView, t: int, module: torch.nn.Module, records: Records) -> np.ndarray:
    """Return (n, 2C + 1 + h): δ = ∂ℓ/∂logits and p, label first, ℓ and the activations a at w_t."""
    seen = view.logits(t, records)
    p = _softmax(seen)
    delta = p - np.eye(p.shape[1])[records.labels]
    losses = outputs.loss(seen, records.labels)[:, None]
    inside = outputs.last_layer_inputs(module, records.features)
    first = [label_first(values, records.labels, seen) for values in (delta, p)]
    return np.hstack([*first, losses, inside])


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
