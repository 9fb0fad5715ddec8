"""The one way to run attacks, whoever mounts them: what an observer saw in, scores and thresholds out."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np

from attacks import by_round
from attacks.calibration import calibrate
from attacks.declaration import Attack, Kind, declarations
from attacks.matrix import rehearsal
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.membership.server import Measurements, measure
from attacks.rounds import decoding
from attacks.shadows.suite import Laboratory, simulate
from attacks.views import rounds
from attacks.views.outsider import ReleasedModel
from attacks.views.participant import ParticipantView
from attacks.views.server import ServerView
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.errors import FedsimError
from fedsim.core.imports import short
from fedsim.core.memory import give_back
from fedsim.core.scenario.adversary import Observer

CALIBRATION = 1000
"""Training and held-out records of its own, of each at most, on which an owner chooses a threshold."""

Sight = ParticipantView | ReleasedModel | ServerView
"""What an observer saw: a participant or a coalition, an outsider, the server."""

Made = TypeVar("Made")

VIEWS = declarations(decoding.score)
"""Attacks whose log-odds others take beside their shadows."""

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Task:
    """What is asked of an observer's attacks.

    candidates: n records; seed, game: of all randomness
    laboratory: what simulations may cost
    victims: partition ids that a candidate can be of, for source inference
    """

    candidates: Records
    seed: int
    game: int = 0
    laboratory: Laboratory | None = None
    victims: tuple[int, ...] = ()

    def stream(self, purpose: str) -> np.random.Generator:
        """Return the random stream of this purpose."""
        return rng.generator(self.seed, purpose, game=self.game)


@dataclass(frozen=True)
class Finding:
    """What one attack found; it says 'member' where score ≥ threshold.

    scores: (n,) float64 of the candidates, finite, higher = member.
    threshold: the one with the best balanced accuracy on what the adversary owns (its own records, or shadows
        attacked in the target's place); the score's own, such as 0 of a log-odds of membership; or the
        scores' median, where an observer owns nothing to calibrate on.
    """

    scores: np.ndarray
    threshold: float


@dataclass(frozen=True)
class Results:
    """What an observer's attacks found, by name.

    sources: (n, V) float64, how much each of the V victims is believed to hold each candidate
    by_round: attack → round t → (n,) float64 scores from w_t alone, of those that are asked of every round
    not_run: attack → why it could not be run, in one sentence
    """

    findings: dict[str, Finding] = field(default_factory=dict)
    sources: dict[str, np.ndarray] = field(default_factory=dict)
    by_round: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def run(observer: Observer, sight: Sight, attacks: Sequence[Attack], task: Task) -> Results:
    """Run an observer's attacks on what it saw. Shadows are simulated once, if an attack asks for them.

    An attack that raises is left out with its reason, and the others run all the same. A score that is not
    finite (a diverged model, no answer) becomes the lowest finite score: a record about which nothing can be
    said is not called a member.

    Raises:
        InputError: none of the rounds to look at was seen.
    """
    sight = rounds.as_assumed(sight) if isinstance(sight, ParticipantView) else sight
    results, memo = Results(), _Memo()
    for attack in attacks:
        try:
            if attack.infers == "source":
                results.sources[attack.name] = _infer_source(attack, sight, task, memo)
            else:
                purpose = _purpose(observer, attack)
                results.findings[attack.name] = _FIND[attack.kind](attack, purpose, sight, task, memo)
                if attack.by_round and isinstance(sight, ParticipantView):
                    results.by_round[attack.name] = _by_round(attack, purpose, sight, task, memo)
        except Exception as error:
            reason = str(error) if isinstance(error, FedsimError) else short(error)
            log.warning("%s: attack '%s' is left out: %s", observer, attack.name, reason)
            log.debug("attack '%s'", attack.name, exc_info=error)
            results.not_run[attack.name] = reason
    del memo
    give_back()
    return results


def _by_round(
    attack: Attack, purpose: str, view: ParticipantView, task: Task, memo: _Memo
) -> dict[int, np.ndarray]:
    """Return round → scores from that round's model, (n,) float64."""
    candidates, stream = task.candidates, task.stream(f"{purpose}/by round")
    n, found = len(candidates), {}
    if attack.kind == "matrix":
        for t, matrix in by_round.matrices(_matrix(attack, view, task, memo)):
            found[t] = _filled(_scores(attack, len(matrix.labels), matrix, stream)[:n])
    else:
        for t, seen in by_round.views(view):
            found[t] = _filled(_scores(attack, n, seen, candidates, stream))
    return found


def _purpose(observer: Observer, attack: Attack) -> str:
    """Return the purpose of an attack's stream, the same for a participant and for the coalition it leads."""
    adversary = observer in ("participant", "coalition")
    return f"attack/{attack.name}" if adversary else f"attack/{observer}/{attack.name}"


class _Memo:
    """What several attacks need is made for the first of them; where that raises, it raises for all."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __call__(self, name: str, make: Callable[[], Made]) -> Made:
        if name not in self._made:
            try:
                self._made[name] = make()
            except Exception as error:
                self._made[name] = error
        made = self._made[name]
        if isinstance(made, Exception):
            raise made
        return cast(Made, made)


def _matrix(attack: Attack, sight: Sight, task: Task, memo: _Memo) -> SignalMatrix:
    """Return the signals of the shadows that an attack compares with; the same object whenever asked."""
    assert isinstance(sight, ParticipantView)
    view = sight

    def simulated(early: bool) -> SignalMatrix:
        name = "early" if early else "whole"
        arguments = (view, task.candidates, task.seed, task.game, task.laboratory)
        return memo(name, lambda: simulate(*arguments, early=early))

    if set(attack.compares_with) == {"whole", "early"}:
        return memo("both", lambda: replace(simulated(False), early=simulated(True)))
    return simulated("early" in attack.compares_with)


def _measurements(sight: Sight, task: Task, memo: _Memo) -> Measurements:
    assert isinstance(sight, ServerView)
    return memo("measurements", lambda: measure(sight, task.candidates))


def _read(attack: Attack, purpose: str, sight: Sight, task: Task, memo: _Memo) -> Finding:
    """Run an attack that reads the view; its threshold comes from the owner's own records."""
    assert isinstance(sight, ParticipantView)
    scores = memo(f"scores/{attack.name}", lambda: _read_scores(attack, purpose, sight, task))
    if attack.threshold is not None:
        return Finding(scores, attack.threshold)
    stream = task.stream(f"{purpose}/calibration")
    train, heldout = (_at_most(CALIBRATION, side, stream) for side in (sight.own_train, sight.own_heldout))
    own = Records.concatenate([train, heldout])
    own_scores = _finite(attack, _scores(attack, len(own), sight.as_outsider_of_itself(), own, stream))
    members, nonmembers = np.split(own_scores, [len(train)])
    return Finding(scores, calibrate(members, nonmembers))


def _read_scores(attack: Attack, purpose: str, sight: ParticipantView, task: Task) -> np.ndarray:
    candidates, stream = task.candidates, task.stream(purpose)
    return _finite(attack, _scores(attack, len(candidates), sight, candidates, stream))


def _put_beside(attack: Attack, matrix: SignalMatrix, sight: Sight, task: Task, memo: _Memo) -> None:
    """Put the log-odds of the attacks that are given beside it to the matrix, as far as these can be run."""
    assert isinstance(sight, ParticipantView)
    view = sight
    for other in (one for one in VIEWS if one.name in attack.beside):
        make = functools.partial(_read_scores, other, _purpose("participant", other), view, task)
        with contextlib.suppress(FedsimError):
            scores = memo(f"scores/{other.name}", make)
            # The same object: what else was made of this matrix stays with it.
            matrix.beside[other.name] = np.concatenate([scores, np.zeros(len(matrix.labels) - len(scores))])


def _compare(attack: Attack, purpose: str, sight: Sight, task: Task, memo: _Memo) -> Finding:
    """Run an attack on shadows; its threshold comes from shadows attacked in the target's place."""
    matrix = _matrix(attack, sight, task, memo)
    stream = task.stream(purpose)
    if attack.beside:
        _put_beside(attack, matrix, sight, task, memo)
    scores = _scores(attack, len(matrix.labels), matrix, stream)[: len(task.candidates)]
    scores = _finite(attack, scores)
    if attack.threshold is not None:
        return Finding(scores, attack.threshold)
    stream = task.stream(f"{purpose}/calibration")
    return Finding(scores, rehearsal.calibrate_on_rehearsals(attack.score, matrix, stream))


def _ask(attack: Attack, purpose: str, sight: Sight, task: Task, memo: _Memo) -> Finding:
    """Run an outsider's attack: it has the whole query budget, and noise of its own in the answers."""
    assert isinstance(sight, ReleasedModel)
    view = sight.view(task.stream(purpose.replace("attack/", "answers/", 1)))
    candidates = task.candidates
    return _halved(_scores(attack, len(candidates), view, candidates, task.stream(purpose)))


def _measure(attack: Attack, purpose: str, sight: Sight, task: Task, memo: _Memo) -> Finding:
    """Run an attack of the server's on what it measured once for all of them."""
    measurements = _measurements(sight, task, memo)
    return _halved(_scores(attack, len(task.candidates), measurements, task.stream(purpose)))


_FIND: dict[Kind, Callable[[Attack, str, Sight, Task, _Memo], Finding]] = {
    "view": _read,
    "matrix": _compare,
    "answers": _ask,
    "measurements": _measure,
}


def _infer_source(attack: Attack, sight: Sight, task: Task, memo: _Memo) -> np.ndarray:
    """Return how much each victim is believed to hold each candidate, (n, V) float64."""
    if attack.kind == "matrix":
        seen: SignalMatrix | Measurements = _matrix(attack, sight, task, memo)
    else:
        seen = _measurements(sight, task, memo)
    victims, n = np.array(task.victims), len(task.candidates)
    scores = np.asarray(attack.score(seen, victims, task.stream(f"source/{attack.name}")), dtype=np.float64)
    if scores.ndim != 2 or len(scores) < n or scores.shape[1] != len(victims):
        raise ValueError(f"it returned shape {scores.shape}; it must be {(n, len(victims))}")
    if np.isnan(scores[:n]).any():
        raise ValueError("a score is NaN")
    return scores[:n]


def _at_most(most: int, records: Records, stream: np.random.Generator) -> Records:
    """Return at most so many of the records, drawn at random: more hardly move a threshold."""
    if len(records) <= most:
        return records
    return records.take(np.sort(stream.choice(len(records), most, replace=False)))


def _scores(attack: Attack, n: int, *arguments: object) -> np.ndarray:
    """Call the attack's function and return its n scores, float64, finite or not.

    Raises:
        ValueError: they are not (n,) numbers.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        scores = np.asarray(attack.score(*arguments), dtype=np.float64)
    if scores.shape != (n,):
        raise ValueError(f"it returned shape {scores.shape}; it must be {(n,)}")
    return scores


def _finite(attack: Attack, scores: np.ndarray) -> np.ndarray:
    """Return the scores with the lowest finite one in place of what is not finite, with a RuntimeWarning."""
    finite = np.isfinite(scores)
    if finite.all():
        return scores
    text = f"{np.sum(~finite)} of {len(scores)} scores are not finite and count as the lowest"
    warnings.warn(f"attack '{attack.name}': {text}", RuntimeWarning, stacklevel=3)
    return _filled(scores)


def _filled(scores: np.ndarray) -> np.ndarray:
    finite = np.isfinite(scores)
    return np.where(finite, scores, scores[finite].min() if finite.any() else 0.0)


def _halved(scores: np.ndarray) -> Finding:
    """Return the scores and their median as threshold.

    Outsider and server own no records to calibrate on: they call the upper half of the candidates members,
    as a game of as many members as non-members suggests. NaN says that a record was not asked about.
    """
    filled = _filled(scores)
    return Finding(filled, float(np.median(filled)))
