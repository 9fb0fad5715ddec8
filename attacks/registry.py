"""The suite: every attack by name, and the one way to run them.

To add an attack, write its ``score`` function and one line in `_ATTACKS`. There are two kinds: those that
read the view, and those that compare the target with shadow federations (`signal_matrix`). Of the first,
some simulate rounds of the parties by themselves (`attacks.rounds`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from attacks.calibration import calibrate
from attacks.matrix import combined, lira, lira_rounds, quantile, rehearsal, rmia, shokri
from attacks.matrix.joint import parts, stacking
from attacks.matrix.rehearsal import MatrixScore
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.membership import active, label_only, threshold, trajectory, update_regression, whitebox
from attacks.rounds import decoding
from attacks.shadows.laboratory import Laboratory, simulate
from attacks.shadows.plan import STRATEGIES
from attacks.views import rounds
from attacks.views.participant import ParticipantView
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.settings import Scenario

CALIBRATION = 1000
"""Training and held-out records of its own, of each at most, on which an owner chooses a threshold."""

Score = Callable[[ParticipantView, Records, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Attack:
    """One attack; its score has a number per candidate, (n,) float64, higher = member.

    score: of (view, candidates, rng), or of (matrix, rng) where it compares with ``shadows``
    needs: of the candidates; sees: of the federation; assumes: what must hold for it to work.
    inside: whether the candidates must be members of some shadows, so that the adversary must own them
    threshold: the score's own, where it has one (0 of a log-odds); else it is chosen on what the owner has
    active: what the adversary must have done in the federation; '' where it need only have watched
    early: whether it reads shadows of the first rounds alone; whole: whether it reads those of all rounds
    simulates: whether it simulates rounds of the parties by itself, without shadows
    """

    name: str
    score: Score | MatrixScore
    needs: str
    sees: str
    source: str
    assumes: str
    shadows: bool = False
    inside: bool = False
    threshold: float | None = None
    active: str = ""
    early: bool = False
    whole: bool = True
    simulates: bool = False


@dataclass(frozen=True)
class Finding:
    """What one attack found; it says 'member' where score ≥ threshold.

    scores: (n,) float64 of the candidates, finite, higher = member.
    threshold: the one with the best balanced accuracy on what the adversary owns: its own records, or
        shadows attacked in the target's place; or the score's own, such as 0 of a log-odds of membership.
    """

    scores: np.ndarray
    threshold: float


_X, _XY = "features", "features and label"
_LAST, _ALL = "the final model", "the model of every round"
_LABEL, _FIRST = "the final model's labels only", "the first models"
_ODDS = (True, True, 0.0)
_FITTED = "members are fitted better than records like them"
_OWN = "candidates are to the model what the adversary's own records are"
_PULLED = "members turn the step towards themselves"
_BACK = "a record that someone trains on comes back further when its loss was pushed up"
_YEOM, _SALEM, _SONG = "Yeom et al. 2018", "Salem et al. 2019", "Song & Mittal 2021"
_ALIKE = "shadows repeat the federation: public settings, w_0, records like the parties' own"
_BERTRAN = "Bertran et al. 2023"
_CARLINI, _ZARIFZADEH = "Carlini et al. 2022", "Zarifzadeh et al. 2024"
_DECODED = "ours: all candidates decoded together"
_NASR, _CHOQUETTE = "Nasr et al. 2019", "Choquette-Choo et al. 2021"
_ROUNDS = "parties of their public sizes train as the settings say, on records like the owned ones"
_ATTACKS = [
    Attack("gap", threshold.gap, _XY, _LABEL, _YEOM, _FITTED),
    Attack("loss", threshold.loss, _XY, _LAST, _YEOM, _FITTED),
    Attack("confidence", threshold.confidence, _X, _LAST, _SALEM, _FITTED),
    Attack("entropy", threshold.entropy, _X, _LAST, _SALEM, _FITTED),
    Attack("modified-entropy", threshold.modified_entropy, _XY, _LAST, _SONG, _FITTED),
    Attack("per-class-entropy", threshold.modified_entropy_per_class, _XY, _LAST, _SONG, _OWN),
    Attack("scaled-logit", threshold.scaled_logit, _XY, _LAST, _CARLINI, _FITTED),
    Attack("gradient-norm", whitebox.gradient_norm, _XY, _LAST, _NASR, _FITTED),
    Attack("representation", whitebox.representation, _XY, _LAST, _NASR, _OWN),
    Attack("noise-robustness", label_only.noise_robustness, _XY, _LABEL, _CHOQUETTE, _FITTED),
    Attack("boundary-distance", label_only.boundary_distance, _XY, _LABEL, _CHOQUETTE, _FITTED),
    Attack("loss-series", trajectory.loss_series, _XY, _ALL, "Zhu et al. 2025 (baseline)", _FITTED),
    Attack("confidence-series", trajectory.confidence_series, _XY, _ALL, "Gu et al. 2022", _OWN),
    Attack("update-cosine", trajectory.update_cosine, _XY, _ALL, "Li et al. 2023", _PULLED),
    Attack("update-difference", trajectory.update_difference, _XY, _ALL, "Li et al. 2023", _PULLED),
    Attack("update-regression", update_regression.score, _XY, _ALL, _DECODED, _PULLED),
    Attack(
        "round-decoding",
        decoding.score,
        _XY,
        _FIRST,
        "ours: simulated rounds of single parties",
        _ROUNDS,
        threshold=0.0,
        simulates=True,
    ),
    Attack("white-box-network", whitebox.network, _XY, _ALL, _NASR, _OWN),
    Attack("gradient-ascent", active.recovery, _XY, _ALL, _NASR, _BACK, active="gradient-ascent"),
    Attack("shokri", shokri.score, _XY, _LAST, "Shokri et al. 2017", _ALIKE, True, True),
    Attack("quantile", quantile.score, _XY, _LAST, _BERTRAN, _ALIKE, True),
    Attack("quantile-regression", quantile.regression, _XY, _LAST, _BERTRAN, _ALIKE, True, threshold=0.0),
    Attack("lira-offline", lira.offline, _XY, _LAST, _CARLINI, _ALIKE, True),
    Attack("lira", lira.online, _XY, _LAST, _CARLINI, _ALIKE, True, True),
    Attack("lira-fixed", lira.online_fixed, _XY, _LAST, _CARLINI, _ALIKE, True, True),
    Attack("lira-rounds", lira_rounds.score, _XY, _ALL, "LiRA on (φ_t)_t, shrunk", _ALIKE, True, True),
    Attack("rmia-offline", rmia.offline, _XY, _LAST, _ZARIFZADEH, _ALIKE, True),
    Attack("rmia", rmia.online, _XY, _LAST, _ZARIFZADEH, _ALIKE, True, True),
    Attack("combined", combined.score, _XY, _ALL, "ours: stacking on shadows", _ALIKE, *_ODDS, early=True),
    Attack("joint", stacking.score, _XY, _ALL, "ours: decoded together", _ALIKE, *_ODDS, early=True),
    Attack(
        "first-update", parts.first_update, _XY, _FIRST, "ours: w_2 decoded", _ALIKE, *_ODDS, "", True, False
    ),
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


def applicable(
    names: Sequence[str], auxiliary: str, strategy: str, active: str | None = None, central_dp: bool = False
) -> list[Attack]:
    """Return the attacks that can be run on such a federation: 'all' means all of those.

    Raises:
        InputError: a name is not in the suite, or the attack that it names cannot be run.
    """
    chosen = []
    for attack in select(names):
        obstacle = _obstacle(attack, auxiliary, strategy, active, central_dp)
        if not obstacle:
            chosen.append(attack)
        elif attack.name in names:
            raise InputError(f"adversary.attacks: '{attack.name}' {obstacle}")
    return chosen


def attacks_of(scenario: Scenario, names: Sequence[str] | None = None) -> list[Attack]:
    """Return the participant's attacks in a scenario, those named or the scenario's.

    Raises:
        InputError: as `applicable`; or there is no such round to look at.
    """
    settings, federation = scenario.adversary, scenario.federation
    rounds.check_rounds(settings.rounds, federation.rounds)
    return applicable(
        names or settings.attacks,
        settings.auxiliary,
        federation.strategy,
        settings.active,
        federation.central_dp is not None,
    )


def _obstacle(attack: Attack, auxiliary: str, strategy: str, active: str | None, central_dp: bool) -> str:
    if (attack.shadows or attack.simulates) and central_dp:
        return (
            "simulates the federation, which it cannot under federation.central_dp; take one without shadows"
        )
    if (attack.shadows or attack.simulates) and strategy not in STRATEGIES:
        return f"simulates the federation, which it cannot with federation.strategy = '{strategy}'"
    if attack.inside and auxiliary != "population":
        return f"trains shadows on candidates, which adversary.auxiliary = '{auxiliary}' does not own"
    if attack.active and attack.active != active:
        return f"reads what an active adversary did to the model; set adversary.active = '{attack.active}'"
    return ""


def run(
    view: ParticipantView,
    candidates: Records,
    names: Sequence[str],
    seed: int,
    game: int = 0,
    laboratory: Laboratory | None = None,
) -> dict[str, Finding]:
    """Score every candidate with every named attack; choose each attack's threshold on what the owner has.

    A score that is not finite (a diverged model) becomes the lowest finite score, with a RuntimeWarning: a
    record about which nothing can be said is not called a member.

    laboratory: what simulations may cost; shadows are simulated once, if an attack asks for them.

    Raises:
        InputError: a name is not in the suite, or the attack cannot be run on this federation; or none of the
            rounds to look at was seen.
        ValueError: the owner has no training or no held-out records to calibrate on.
    """
    view = rounds.as_assumed(view)
    assumed = view.assumptions
    settings, central = view.settings, view.settings.central_dp is not None
    attacks = applicable(names, assumed.auxiliary, settings.strategy, assumed.active, central)
    matrix_of = _simulated(attacks, view, candidates, seed, game, laboratory)
    findings = {}
    for attack in attacks:
        if attack.shadows:
            matrix = matrix_of[attack.whole, attack.early]
            findings[attack.name] = _compare(attack, matrix, len(candidates), seed, game)
        else:
            findings[attack.name] = _read(attack, view, candidates, seed, game)
    return findings


def _simulated(
    attacks: Sequence[Attack],
    view: ParticipantView,
    candidates: Records,
    seed: int,
    game: int,
    laboratory: Laboratory | None,
) -> dict[tuple[bool, bool], SignalMatrix]:
    """Simulate what the attacks need: (whether whole federations, whether early ones) → matrix."""
    wanted = {(attack.whole, attack.early) for attack in attacks if attack.shadows}
    found = {}
    if any(whole for whole, _ in wanted):
        found[True, False] = simulate(view, candidates, seed, game, laboratory)
    if any(early for _, early in wanted):
        found[False, True] = simulate(view, candidates, seed, game, laboratory, early=True)
    if (True, True) in wanted:
        found[True, True] = replace(found[True, False], early=found[False, True])
    return found


def _read(attack: Attack, view: ParticipantView, candidates: Records, seed: int, game: int) -> Finding:
    """Run an attack that reads the view; its threshold comes from the owner's own records."""
    score, purpose = cast(Score, attack.score), f"attack/{attack.name}"
    stream = rng.generator(seed, purpose, game=game)
    scores = _finite(attack, lambda: score(view, candidates, stream))
    if attack.threshold is not None:
        return Finding(scores, attack.threshold)
    stream = rng.generator(seed, f"{purpose}/calibration", game=game)
    train, heldout = (_some(side, stream) for side in (view.own_train, view.own_heldout))
    own = Records.concatenate([train, heldout])
    own_scores = _finite(attack, lambda: score(view.as_outsider_of_itself(), own, stream))
    members, nonmembers = np.split(own_scores, [len(train)])
    return Finding(scores, calibrate(members, nonmembers))


def _some(records: Records, stream: np.random.Generator) -> Records:
    """Return at most `CALIBRATION` of the records, drawn at random: more hardly move a threshold."""
    if len(records) <= CALIBRATION:
        return records
    return records.take(np.sort(stream.choice(len(records), CALIBRATION, replace=False)))


def _compare(attack: Attack, matrix: SignalMatrix, candidates: int, seed: int, game: int) -> Finding:
    """Run an attack on shadows; its threshold comes from shadows attacked in the target's place."""
    score, purpose = cast(MatrixScore, attack.score), f"attack/{attack.name}"
    stream = rng.generator(seed, purpose, game=game)
    scores = _finite(attack, lambda: score(matrix, stream)[:candidates])
    if attack.threshold is not None:
        return Finding(scores, attack.threshold)
    stream = rng.generator(seed, f"{purpose}/calibration", game=game)
    return Finding(scores, rehearsal.calibrate_on_rehearsals(score, matrix, stream))


def _finite(attack: Attack, score: Callable[[], np.ndarray]) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        scores = np.asarray(score(), dtype=np.float64)
    finite = np.isfinite(scores)
    if finite.all():
        return scores
    text = f"{np.sum(~finite)} of {len(scores)} scores are not finite and count as the lowest"
    warnings.warn(f"attack '{attack.name}': {text}", RuntimeWarning, stacklevel=3)
    return np.where(finite, scores, scores[finite].min() if finite.any() else 0.0)
