"""The suite: every attack by name, and the one way to run them.

To add an attack, write its ``score`` function and one line in `SUITE`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attacks import label_only, threshold, trajectory, whitebox
from attacks.observer import ParticipantView
from fedsim import rng
from fedsim.data.records import Records
from fedsim.errors import InputError, suggestion

Score = Callable[[ParticipantView, Records, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Attack:
    """One attack: ``score(view, candidates, rng)`` gives (n,) float64, higher = member.

    needs: of the candidates; sees: of the federation; assumes: what must hold for it to work.
    """

    name: str
    score: Score
    needs: str
    sees: str
    source: str
    assumes: str


@dataclass(frozen=True)
class Finding:
    """What one attack found; it says 'member' where score ≥ threshold.

    scores: (n,) float64 of the candidates, finite, higher = member.
    threshold: the one with the best balanced accuracy on the adversary's own records.
    own_train_scores, own_heldout_scores: (m,) float64 each, what the threshold was chosen on.
    """

    scores: np.ndarray
    threshold: float
    own_train_scores: np.ndarray
    own_heldout_scores: np.ndarray


_X, _XY = "features", "features and label"
_LAST, _ALL = "the final model", "the model of every round"
_LABEL = "the final model's labels only"
_FITTED = "members are fitted better than records like them"
_OWN = "candidates are to the model what the adversary's own records are"
_PULLED = "members turn the step towards themselves; equal weights in the average"
_YEOM, _SALEM, _SONG = "Yeom et al. 2018", "Salem et al. 2019", "Song & Mittal 2021"
_NASR, _CHOQUETTE = "Nasr et al. 2019", "Choquette-Choo et al. 2021"
_ATTACKS = [
    Attack("gap", threshold.gap, _XY, _LABEL, _YEOM, _FITTED),
    Attack("loss", threshold.loss, _XY, _LAST, _YEOM, _FITTED),
    Attack("confidence", threshold.confidence, _X, _LAST, _SALEM, _FITTED),
    Attack("entropy", threshold.entropy, _X, _LAST, _SALEM, _FITTED),
    Attack("modified-entropy", threshold.modified_entropy, _XY, _LAST, _SONG, _FITTED),
    Attack("modified-entropy-per-class", threshold.modified_entropy_per_class, _XY, _LAST, _SONG, _OWN),
    Attack("scaled-logit", threshold.scaled_logit, _XY, _LAST, "Carlini et al. 2022", _FITTED),
    Attack("gradient-norm", whitebox.gradient_norm, _XY, _LAST, _NASR, _FITTED),
    Attack("representation", whitebox.representation, _XY, _LAST, _NASR, _OWN),
    Attack("noise-robustness", label_only.noise_robustness, _XY, _LABEL, _CHOQUETTE, _FITTED),
    Attack("boundary-distance", label_only.boundary_distance, _XY, _LABEL, _CHOQUETTE, _FITTED),
    Attack("loss-series", trajectory.loss_series, _XY, _ALL, "Zhu et al. 2025 (baseline)", _FITTED),
    Attack("confidence-series", trajectory.confidence_series, _XY, _ALL, "Gu et al. 2022", _OWN),
    Attack("update-cosine", trajectory.update_cosine, _XY, _ALL, "Li et al. 2023", _PULLED),
    Attack("update-difference", trajectory.update_difference, _XY, _ALL, "Li et al. 2023", _PULLED),
    Attack("white-box-network", whitebox.network, _XY, _ALL, _NASR, _OWN),
]
SUITE: dict[str, Attack] = {attack.name: attack for attack in _ATTACKS}


def select(names: Sequence[str]) -> list[Attack]:
    """Return the attacks of these names, each once, in the suite's order; 'all' means all of them.

    Raises:
        InputError: a name is not in the suite.
    """
    for name in names:
        if name != "all" and name not in SUITE:
            hint = suggestion(name, ["all", *SUITE])
            raise InputError(f"adversary.attacks = {list(names)!r}: unknown attack '{name}'{hint}")
    return [attack for attack in SUITE.values() if "all" in names or attack.name in names]


def run(
    view: ParticipantView, candidates: Records, names: Sequence[str], seed: int, game: int = 0
) -> dict[str, Finding]:
    """Score every candidate with every named attack; choose each attack's threshold on the owner's records.

    A score that is not finite (a diverged model) becomes the lowest finite score, with a RuntimeWarning: a
    record about which nothing can be said is not called a member.

    Raises:
        InputError: a name is not in the suite.
        ValueError: the owner has no training or no held-out records to calibrate on.
    """
    own = Records.concatenate([view.own_train, view.own_heldout])
    calibration = view.as_outsider_of_itself()
    findings = {}
    for attack in select(names):
        purpose = f"attack/{attack.name}"
        scores = _finite_scores(attack, view, candidates, rng.generator(seed, purpose, game=game))
        stream = rng.generator(seed, f"{purpose}/calibration", game=game)
        own_scores = _finite_scores(attack, calibration, own, stream)
        members, nonmembers = np.split(own_scores, [len(view.own_train)])
        findings[attack.name] = Finding(scores, calibrate(members, nonmembers), members, nonmembers)
    return findings


def calibrate(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """Return the threshold c for which 'score ≥ c' has the best balanced accuracy.

    members, nonmembers: (n,) scores. c lies halfway between two neighbouring scores; of equally good cuts the
    one whose neighbours are furthest apart wins, then the lowest. Where every cut is worse than chance, c
    lies above all scores.

    Raises:
        ValueError: one of the two is empty.
    """
    if not len(members) or not len(nonmembers):
        raise ValueError("a threshold needs at least one member and one non-member")
    distinct = np.unique(np.concatenate([members, nonmembers]))
    low, high = distinct[:-1], distinct[1:]
    middle = low + (high - low) / 2
    cuts = np.append(np.where(middle > low, middle, high), np.nextafter(distinct[-1], np.inf))
    margins = np.append(high - low, 0.0)
    hits = len(members) - np.searchsorted(np.sort(members), cuts)
    alarms = len(nonmembers) - np.searchsorted(np.sort(nonmembers), cuts)
    advantage = hits * len(nonmembers) - alarms * len(members)  # in integers, so that ties are ties
    return float(cuts[np.lexsort((cuts, -margins, -advantage))[0]])


def _finite_scores(
    attack: Attack, view: ParticipantView, records: Records, stream: np.random.Generator
) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        scores = np.asarray(attack.score(view, records, stream), dtype=np.float64)
    finite = np.isfinite(scores)
    if finite.all():
        return scores
    text = f"{np.sum(~finite)} of {len(scores)} scores are not finite and count as the lowest"
    warnings.warn(f"attack '{attack.name}': {text}", RuntimeWarning, stacklevel=3)
    return np.where(finite, scores, scores[finite].min() if finite.any() else 0.0)
