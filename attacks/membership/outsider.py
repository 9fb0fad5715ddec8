"""Attacks of an outsider, who was never in the federation and queries the model through an output policy.

What a policy leaves of the probabilities p is made whole again where it can be (`completed`); the attacks are
those on one model, on log p in place of the logits.

'laplace' and 'gaussian' give a guarantee: whatever changes of the model, a vector of probabilities moves by
at most 2 in ℓ1 and √2 in ℓ2, so that noise in proportion makes one answer (ε, 0)- or (ε, δ)-DP. k answers are
(kε, kδ)-DP by basic composition (Dwork & Roth 2014, theorem 3.16): see `spent`. The noise is a simulation's,
in floating point; a real service needs a sampler that is safe against Mironov 2012.
"""

from __future__ import annotations

import numpy as np

from attacks.declaration import FITTED, RELEASED_ANSWERS, attack
from attacks.signals import outputs
from attacks.views.outsider import OutsiderView
from fedsim.core.data.records import Records
from fedsim.core.privacy.output import completed

COPIES = 32
"""Noisy copies of a record, as many as the query budget allows."""

NOISE = 0.5
"""Scale of the copies' noise, as a multiple of the candidates' own: an outsider has no other records."""


def answers_asked(name: str, candidates: int, queries: int | None) -> int:
    """Return how many queries an outsider's attack makes about ``candidates`` records within the budget."""
    n = candidates if queries is None else min(candidates, queries)
    return n * _copies(n, queries) if name == "noise-robustness" else n


@attack("gap", observers=("outsider",), sees=RELEASED_ANSWERS, assumes=FITTED, source="Yeom et al. 2018")
def gap(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return 1[argmax p = y], (n,) float64 (Yeom et al. 2018); NaN beyond the query budget, as all scores."""
    return outputs.correct(_log_p(view, candidates), candidates.labels)


@attack("loss", observers=("outsider",), sees=RELEASED_ANSWERS, assumes=FITTED, source="Yeom et al. 2018")
def loss(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return log p_y − log Σ_{i≠y} p_i, (n,) float64: the order of −ℓ (Yeom et al. 2018)."""
    return outputs.scaled_logit(_log_p(view, candidates), candidates.labels)


@attack(
    "confidence", observers=("outsider",), sees=RELEASED_ANSWERS, assumes=FITTED, source="Salem et al. 2019"
)
def confidence(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return log max_i p_i, (n,) float64 (Salem et al. 2019)."""
    return outputs.confidence(_log_p(view, candidates))


@attack("entropy", observers=("outsider",), sees=RELEASED_ANSWERS, assumes=FITTED, source="Salem et al. 2019")
def entropy(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return Σ p_i log p_i, (n,) float64 (Salem et al. 2019)."""
    return -outputs.entropy(_log_p(view, candidates))


@attack(
    "modified-entropy",
    observers=("outsider",),
    sees=RELEASED_ANSWERS,
    assumes=FITTED,
    source="Song & Mittal 2021",
)
def modified_entropy(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return (1 − p_y) log p_y + Σ_{i≠y} p_i log(1 − p_i), (n,) float64 (Song & Mittal 2021)."""
    return -outputs.modified_entropy(_log_p(view, candidates), candidates.labels)


@attack(
    "noise-robustness",
    observers=("outsider",),
    sees=RELEASED_ANSWERS,
    assumes=FITTED,
    source="Choquette-Choo et al. 2021",
)
def noise_robustness(view: OutsiderView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the share of noisy copies of x whose most likely class is y, (n,) float64 in [0, 1].

    `COPIES` copies of each record, fewer where the query budget is smaller; an outsider has no records of
    its own on which to choose the noise's scale. Source: Choquette-Choo et al. 2021, §3.2.
    """
    n = _affordable(view, len(candidates))
    copies = _copies(n, view.queries)
    scale = NOISE * np.sqrt(candidates.features.var(axis=0, dtype=np.float64).mean())
    shifts = (scale * rng.normal(size=(copies, *candidates.shape))).astype(np.float32)
    shares = np.full(len(candidates), np.nan)
    answers = [completed(view.ask(candidates.features[:n] + shift)) for shift in shifts]
    shares[:n] = np.mean([outputs.correct(p, candidates.labels[:n]) for p in answers], axis=0)
    return shares


def _log_p(view: OutsiderView, candidates: Records) -> np.ndarray:
    """Return log p of each candidate, (n, classes) float64; NaN beyond the query budget.

    A probability released as 0 counts as the smallest that there is, so that its logarithm is finite.
    """
    n = _affordable(view, len(candidates))
    p = np.full((len(candidates), view.classes), np.nan)
    p[:n] = completed(view.ask(candidates.features[:n]))
    return np.log(np.maximum(p, np.finfo(np.float64).tiny))


def _affordable(view: OutsiderView, n: int) -> int:
    return n if view.queries is None else min(n, view.queries)


def _copies(n: int, queries: int | None) -> int:
    return COPIES if queries is None else max(1, min(COPIES, queries // n))
