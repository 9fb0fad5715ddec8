"""Records' gradients beside the others' update, in the space in which gradients vary alike in all directions.

The mean gradient m of n records is, by the central limit theorem, N(μ, Σ/n), μ and Σ those of a record's
gradient g in the population; that of a set that g is in is N(μ + (g − μ)/n, Σ/n). Two attacks follow:

GLiR (Leemann, Pawelczyk & Kasneci 2023): of non-members S = (n − 1)(m − g)ᵀΣ⁻¹(m − g) is non-central χ² with
d degrees of freedom and non-centrality n(g − μ)ᵀΣ⁻¹(g − μ); of members it is smaller. The score is
−log P(χ² ≤ S), added up over rounds.

The covariance attack (Azize & Basu 2024): (g − μ)ᵀΣ⁻¹(m − μ), the log likelihood ratio of the two Gaussians
up to its constant ½(g − μ)ᵀΣ⁻¹(g − μ)/n, which we take off.

Both are made for a server that sees one step of SGD. A participant sees what several parties add in many
steps: here m is their update over a rate that is fitted, so that m agrees with μ where every record pulls,
and n is at most what m's distance from μ says. Σ is that of gradients at w_{t−1}, of records that the
adversary owns, within the space of its first principal components: of fewer records than weights no more can
be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from attacks.declaration import FIRST_MODELS, attack
from attacks.rounds import knowledge as owned
from attacks.rounds.coordinates import Sketch
from attacks.rounds.decoding import ROUNDS
from attacks.rounds.party_rounds import Compress
from attacks.rounds.signatures import GRADIENT_BYTES, record_gradients
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

RECORDS_A_DIRECTION = 2
"""Records that tell each principal component: members show in all directions, not in the widest alone."""
RESOLVED = 1e-10
"""Share of the largest variance below which a direction is rounding."""
POPULATION = 1024
"""Records of which Σ is estimated, at most."""
FEW = 64
"""Records owned, below which the adversary's own stand for the population too."""
NUMBERS = 2**26
"""Numbers in all gradients together, beyond which they are projected: half a GiB in float64."""

MEAN_OF_GRADIENTS = "the update is the mean of the others' gradients, which vary as the owned records' do"


@dataclass(frozen=True, eq=False)
class Whitened:
    """A round's gradients in whitened coordinates: mean 0 and covariance I over the population.

    candidates: W(g − μ), (n, d) float64; update: W(m − μ), (d,)
    records: n, how many m is the mean of, or is as far from μ as the mean of so many
    """

    candidates: np.ndarray
    update: np.ndarray
    records: float


@attack(
    "glir",
    sees=FIRST_MODELS,
    assumes=MEAN_OF_GRADIENTS,
    source="Leemann et al. 2023",
)
def likelihood(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return −Σ_t log P(χ² ≤ S_t) of every candidate, (n,) float64; 0 where no update was seen."""
    return _over_rounds(view, candidates, chi_squared)


@attack(
    "covariance",
    sees=FIRST_MODELS,
    assumes=MEAN_OF_GRADIENTS,
    source="Azize & Basu 2024",
)
def covariance(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return Σ_t of the Gaussians' log likelihood ratios, (n,) float64; 0 where no update was seen."""
    return _over_rounds(view, candidates, inner_product)


def chi_squared(seen: Whitened) -> np.ndarray:
    """Return −log P(χ²_d(nK) ≤ S), K = ‖W(g − μ)‖², S = (n − 1)‖W(m − g)‖², (n,) float64.

    By Sankaran's (1959) normal approximation, which is finite where the tails' probabilities are 0.
    """
    from scipy.special import log_ndtr

    n, degrees = seen.records, len(seen.update)
    distance = (n - 1) * np.square(seen.update - seen.candidates).sum(axis=1)
    return np.asarray(-log_ndtr(_normal(distance, degrees, n * np.square(seen.candidates).sum(axis=1))))


def _normal(value: np.ndarray, degrees: int, shift: np.ndarray) -> np.ndarray:
    """Return z with Φ(z) ≈ P(χ²_k(λ) ≤ x): k = ``degrees``, λ = ``shift``, x = ``value``."""
    mean, square = degrees + shift, degrees + 2 * shift
    h = 1 - 2 / 3 * mean * (degrees + 3 * shift) / square**2
    p = square / mean**2
    m = (h - 1) * (1 - 3 * h)
    centre = 1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p)
    return np.asarray(((value / mean) ** h - centre) / (h * np.sqrt(2 * p) * (1 + 0.5 * m * p)))


def inner_product(seen: Whitened) -> np.ndarray:
    """Return (g − μ)ᵀΣ⁻¹(m − μ) − ½(g − μ)ᵀΣ⁻¹(g − μ)/n, (n,) float64."""
    square = np.square(seen.candidates).sum(axis=1)
    return np.asarray(seen.candidates @ seen.update - 0.5 * square / seen.records)


def _over_rounds(
    view: ParticipantView, candidates: Records, statistic: Callable[[Whitened], np.ndarray]
) -> np.ndarray:
    """Return the statistics' sum over rounds, the candidates taken in an order that tells nothing of them."""
    order = owned.canonical_order(candidates)
    total = np.zeros(len(candidates))
    for seen in _seen(view, candidates, order):
        total += statistic(seen)
    return total[np.argsort(order)]


_SEEN: WeakKeyDictionary[ParticipantView, tuple[Records, list[Whitened]]] = WeakKeyDictionary()
"""What the last candidates' rounds showed, as long as the view lives: both attacks ask for it."""


def _seen(view: ParticipantView, candidates: Records, order: np.ndarray) -> list[Whitened]:
    """Return `rounds` of the candidates in this order."""
    if view not in _SEEN or _SEEN[view][0] is not candidates:
        known, ordered = view.candidate_party, view
        if known is not None and len(known) == len(candidates):
            ordered = replace(view, candidate_party=np.asarray(known)[order])
        _SEEN[view] = candidates, list(rounds(ordered, candidates.take(order)))
    return _SEEN[view][1]


def rounds(view: ParticipantView, candidates: Records) -> Iterator[Whitened]:
    """Yield what each of `ROUNDS` that was seen shows; nothing of one whose update says nothing."""
    both = Records.concatenate([candidates, population(view, candidates)])
    records = _others_records(view)
    for t in (t for t in ROUNDS if t in view.models):
        update = view.others_update(t)
        if update is None or not len(candidates):
            continue
        module = view.module(view.models[t - 1])
        flat = np.concatenate([update[name].ravel() for name, _ in module.named_parameters()])
        compress = _compression(len(flat), len(both))
        gradients = _gradients(module, both, compress)
        moved = compress(flat[None]).astype(np.float64)[0]
        seen = whiten(gradients[: len(candidates)], gradients[len(candidates) :], moved, records)
        if seen is not None:
            yield seen


def population(view: ParticipantView, candidates: Records) -> Records:
    """Return the records of which μ and Σ are estimated: those it owns besides, by adversary.auxiliary.

    Its own stand for the others' too where it is not told which party is whose, or has few of theirs.
    """
    together = view.assumptions.auxiliary == "population"
    parts = [candidates] if together else []
    if view.auxiliary is not None and len(view.auxiliary):
        parts.append(view.auxiliary.records)
    known = view.candidate_party
    told = known is not None and len(known) == len(candidates) and bool((np.asarray(known) >= 0).all())
    if not told or sum(map(len, parts)) < FEW:
        parts += [view.own_train, view.own_heldout]
    records = Records.concatenate(parts)
    spread = np.linspace(0, len(records) - 1, min(len(records), POPULATION))
    return records.take(np.unique(spread.astype(int)))


def _others_records(view: ParticipantView) -> int:
    """Return of how many records the others' update is the mean, as far as it is public; 2 at least."""
    settings = view.settings
    mine = {settings.own} if view.own_party is None else {settings.own, *view.own_party.tolist()}
    sizes = settings.sizes or (len(view.own_train),) * settings.parties
    others = sum(size for k, size in enumerate(sizes) if k not in mine)
    return max(2, round(others * settings.participants / settings.parties))


def _gradients(module: torch.nn.Module, records: Records, compress: Compress) -> np.ndarray:
    """Return ∇ℓ(w; z) of every record z, (n, q) float64, a part of the records at a time."""
    weights = sum(value.numel() for value in module.parameters())
    size = max(1, GRADIENT_BYTES // (4 * weights))
    parts = np.split(np.arange(len(records)), range(size, len(records), size))
    return np.concatenate([compress(record_gradients(module, records.take(part))) for part in parts]).astype(
        np.float64
    )


def whiten(
    candidates: np.ndarray, population: np.ndarray, update: np.ndarray, records: int
) -> Whitened | None:
    """Return gradients and update in whitened coordinates; None where they cannot be told from 0.

    candidates: g, (n, q); population: gradients, (b, q); update: U ∝ −m, (q,); records: that m is the mean of
    """
    if not (np.isfinite(population).all() and np.isfinite(update).all()):
        return None
    mean = population.mean(axis=0)
    apart = population - mean
    values, vectors = np.linalg.eigh(apart @ apart.T / len(apart))  # (b,), ascending; (b, b)
    values, vectors = values[::-1], vectors[:, ::-1]
    if not values[0] > 0:
        return None
    told = int((values > RESOLVED * values[0]).sum())
    size = max(1, min(told, len(population) // RECORDS_A_DIRECTION, len(update)))
    # Directions of length 1 in weight space, over the deviation along each: (size, q).
    basis = (vectors[:, :size] / (np.sqrt(len(apart)) * values[:size])).T @ apart
    centre, step = basis @ mean, basis @ update
    rate = -float(step @ centre) / max(float(centre @ centre), 1e-300)
    if not rate > 0:
        return None
    moved = -step / rate - centre
    # A mean of n records lies √(d/n) from μ. Several local steps carry it further: as if n were fewer.
    spread = size / max(float(moved @ moved), 1e-300)
    return Whitened(candidates @ basis.T - centre, moved, max(2.0, min(float(records), spread)))


def _compression(size: int, vectors: int) -> Compress:
    """Return what is kept of gradients of ``size`` coordinates: all, or a projection of them."""
    kept = max(1024, NUMBERS // max(1, vectors))
    if size <= kept:
        return lambda rows: rows
    return Sketch.draw(np.ones(size, np.float32), kept, seed=0)
