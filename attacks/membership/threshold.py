"""Attacks on the answers of the final global model: one number per candidate, then a threshold."""

from __future__ import annotations

import numpy as np

from attacks.calibration import calibrate
from attacks.declaration import FEATURES, FINAL_LABELS, FINAL_MODEL, FITTED, LIKE_ITS_OWN, attack
from attacks.membership import crossfit
from attacks.signals import outputs
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records


@attack("gap", sees=FINAL_LABELS, assumes=FITTED, source="Yeom et al. 2018")
def gap(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return 1[argmax p = y], (n,) float64: as good as the model's generalisation gap (Yeom et al. 2018)."""
    return outputs.correct(view.logits(view.final_round, candidates), candidates.labels)


@attack("loss", sees=FINAL_MODEL, assumes=FITTED, source="Yeom et al. 2018", reads="any", by_round=True)
def loss(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return −ℓ(w_T; z), (n,) float64: members were fitted (Yeom et al. 2018)."""
    return -outputs.loss(view.logits(view.final_round, candidates), candidates.labels)


@attack("confidence", needs=FEATURES, sees=FINAL_MODEL, assumes=FITTED, source="Salem et al. 2019")
def confidence(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return log max_i p_i, (n,) float64: needs no label (Salem et al. 2019)."""
    return outputs.confidence(view.logits(view.final_round, candidates))


@attack("entropy", needs=FEATURES, sees=FINAL_MODEL, assumes=FITTED, source="Salem et al. 2019")
def entropy(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return Σ p_i log p_i, (n,) float64: needs no label (Salem et al. 2019)."""
    return -outputs.entropy(view.logits(view.final_round, candidates))


@attack("modified-entropy", sees=FINAL_MODEL, assumes=FITTED, source="Song & Mittal 2021")
def modified_entropy(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return (1 − p_y) log p_y + Σ_{i≠y} p_i log(1 − p_i), (n,) float64 (Song & Mittal 2021)."""
    return -outputs.modified_entropy(view.logits(view.final_round, candidates), candidates.labels)


@attack("per-class-entropy", sees=FINAL_MODEL, assumes=LIKE_ITS_OWN, source="Song & Mittal 2021")
def modified_entropy_per_class(
    view: ParticipantView, candidates: Records, rng: np.random.Generator
) -> np.ndarray:
    """Return the modified entropy's score less its class' threshold, (n,) float64 (Song & Mittal 2021, §3.3).

    The threshold of a class is the best one among the owner's records of that class, so that 0 is the
    threshold of every class and one ROC can be drawn. A class of which the owner has no member or no
    held-out record takes the threshold of all classes together.
    """

    def features(records: Records) -> np.ndarray:
        return np.column_stack([modified_entropy(view, records, rng), records.labels])

    def fit(known: np.ndarray, member: np.ndarray, rng: np.random.Generator) -> crossfit.Scorer:
        thresholds = class_thresholds(known[:, 0], known[:, 1], member, view.settings.classes)
        return lambda values: values[:, 0] - thresholds[values[:, 1].astype(int)]

    return crossfit.cross_fitted(view, candidates, features, fit, rng)


def class_thresholds(scores: np.ndarray, labels: np.ndarray, member: np.ndarray, classes: int) -> np.ndarray:
    """Return each class' threshold (classes,) float64, see `calibration.calibrate`.

    scores, labels, member: (n,), of records of both kinds.
    """
    overall = calibrate(scores[member], scores[~member])
    thresholds = np.full(classes, overall)
    for y in range(classes):
        members, others = scores[member & (labels == y)], scores[~member & (labels == y)]
        if len(members) and len(others):
            thresholds[y] = calibrate(members, others)
    return thresholds


@attack("scaled-logit", sees=FINAL_MODEL, assumes=FITTED, source="Carlini et al. 2022")
def scaled_logit(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return φ = log p_y − log Σ_{i≠y} p_i, (n,) float64: the order of the loss, on LiRA's scale.

    The log-odds of the label (Carlini et al. 2022, §IV-C).
    """
    return outputs.scaled_logit(view.logits(view.final_round, candidates), candidates.labels)
