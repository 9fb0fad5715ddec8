"""The outsider's suite: what it finds of each candidate, and how surely, from what it was told.

It owns the candidates' records and, perhaps, records of people whom it knows not to be in the data (known
outsiders). On these every threshold is calibrated: a candidate's p-value is the rank of its score among
theirs, (1 + #{outsider's score ≥ its}) / (m + 1) (Vovk et al. 2005; Bates et al. 2023, eq. 2). Where those
candidates who are no members are exchangeable with the known outsiders, a rule 'p ≤ α' accuses each of them
with probability at most α, whatever the score. No truth is used, and no hope: of m outsiders the smallest
p-value is 1 / (m + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from attacks.matrix import lira, shokri
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.membership import outsider as one_answer
from attacks.released.answers import Answers, Progress, ask_all
from attacks.released.shadows import ShadowSettings, signals
from attacks.shadows.simulate import Laboratory
from attacks.views.outsider import OutsiderView
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.scenario.protection import OutputPolicy

Score = Callable[[OutsiderView, Records, np.random.Generator], np.ndarray]

ONE_ANSWER: dict[str, Score] = {
    "gap": one_answer.gap,
    "loss": one_answer.loss,
    "confidence": one_answer.confidence,
    "entropy": one_answer.entropy,
    "modified-entropy": one_answer.modified_entropy,
}
"""Attacks that read one answer about a record."""

WITH_SHADOWS = {"shokri": shokri.score, "lira": lira.online, "lira-offline": lira.offline}
"""Attacks that compare the answer with those of the attacker's own shadows."""

LABEL_ONLY = "noise-robustness"
NAMES = (*ONE_ANSWER, LABEL_ONLY, *WITH_SHADOWS)


@dataclass(frozen=True, eq=False)
class Finding:
    """What one attack found.

    scores: (n,) float64 of the candidates, higher = member; NaN where the budget or the model told nothing
    outsiders: (m,) float64, the same of the known outsiders
    queries: what the attack alone would have cost
    """

    scores: np.ndarray
    outsiders: np.ndarray
    queries: int

    @property
    def p_values(self) -> np.ndarray:
        """Return (n,) float64; NaN where there is no score, and everywhere without known outsiders."""
        known = np.sort(self.outsiders[np.isfinite(self.outsiders)])
        if not len(known):
            return np.full(len(self.scores), np.nan)
        at_least = len(known) - np.searchsorted(known, self.scores, side="left")
        return np.where(np.isfinite(self.scores), (1 + at_least) / (len(known) + 1), np.nan)


@dataclass(frozen=True, eq=False)
class Suite:
    """All findings by attack, why others could not be run, and the curve over queries spent.

    curve: (attack, queries, finding) at growing budgets, from the same answers
    age: of the shadows, in trainings, None where there are none
    """

    answers: Answers
    findings: dict[str, Finding]
    curve: list[tuple[str, int, Finding]]
    not_run: dict[str, str] = field(default_factory=dict)
    age: int | None = None


def run(
    view: OutsiderView,
    policy: OutputPolicy,
    candidates: Records,
    outsiders: Records,
    seed: int,
    settings: ShadowSettings | None = None,
    laboratory: Laboratory | None = None,
    progress: Progress | None = None,
) -> Suite:
    """Spend the view's budget and run every attack on the answers.

    policy: of the answers, which a service states to whoever asks; shadows are seen through it
    settings: None trains no shadows
    """
    answers = ask_all(view, candidates, outsiders, rng.generator(seed, "outsider/copies"), progress)
    findings, not_run, age = _one_answer(answers, candidates, outsiders), {}, None
    if answers.spending.copies:
        findings[LABEL_ONLY] = _label_only(answers, answers.spending.copies, len(candidates))
    else:
        not_run[LABEL_ONLY] = "the budget has no query left for noisy copies"
    if settings is not None:
        try:
            matrix = _shadows(answers, candidates, outsiders, policy, settings, seed, laboratory)
            age = int(matrix.rounds[0])
            findings |= _compared(matrix, answers, len(candidates), seed)
        except ValueError as error:
            not_run |= dict.fromkeys(WITH_SHADOWS, str(error))
    return Suite(answers, findings, curve(answers, candidates, outsiders), not_run, age)


def curve(answers: Answers, candidates: Records, outsiders: Records) -> list[tuple[str, int, Finding]]:
    """Return what `LABEL_ONLY` finds with 1, 2, 4, … copies, and 'loss' with the first records alone."""
    n, m = answers.spending.candidates, answers.spending.outsiders
    points: list[tuple[str, int, Finding]] = []
    for asked in sorted({max(1, n // 8), max(1, n // 4), max(1, n // 2), n}):
        loss = _one_answer(answers, candidates, outsiders, asked)["loss"]
        points.append(("loss", m + asked, loss))
    copies = answers.spending.copies
    for k in sorted({2**i for i in range(copies.bit_length())} | {copies} - {0}):
        points.append((LABEL_ONLY, answers.queries(k), _label_only(answers, k, len(candidates))))
    return points


def _one_answer(
    answers: Answers, candidates: Records, outsiders: Records, asked: int | None = None
) -> dict[str, Finding]:
    """Return what the attacks on one answer find of the first ``asked`` candidates."""
    spending = answers.spending
    asked = spending.candidates if asked is None else asked
    found = {}
    for name, score in ONE_ANSWER.items():
        people = _scored(score, answers.candidates[:asked], candidates.take(np.arange(asked)))
        known = _scored(score, answers.outsiders, outsiders.take(np.arange(spending.outsiders)))
        scores = _padded(people, len(candidates))
        found[name] = Finding(scores, known, spending.outsiders + asked)
    return found


def _scored(score: Score, told: np.ndarray, records: Records) -> np.ndarray:
    """Return the scores of answers that were given already."""
    if not len(records):
        return np.empty(0)
    memory = OutsiderView(lambda _: told, told.shape[1], None)
    with np.errstate(invalid="ignore"):
        return score(memory, records, rng.generator(0, "draws nothing"))


def _label_only(answers: Answers, copies: int, candidates: int) -> Finding:
    """Return the share of the first ``copies`` that keep their record's label, the record itself counting."""
    kept = [part[:copies].mean(axis=0) for part in (answers.candidates_kept, answers.outsiders_kept)]
    return Finding(_padded(kept[0], candidates), kept[1], answers.queries(copies))


def _shadows(
    answers: Answers,
    candidates: Records,
    outsiders: Records,
    policy: OutputPolicy,
    settings: ShadowSettings,
    seed: int,
    laboratory: Laboratory | None,
) -> SignalMatrix:
    """Return the shadows of all that the attacker owns, asked about or not."""
    classes = answers.candidates.shape[1]
    told = tuple(
        np.concatenate([part, np.full((len(records) - len(part), classes), np.nan)])
        for part, records in ((answers.candidates, candidates), (answers.outsiders, outsiders))
    )
    return signals(candidates, outsiders, (told[0], told[1]), policy, settings, seed, laboratory)


def _compared(matrix: SignalMatrix, answers: Answers, candidates: int, seed: int) -> dict[str, Finding]:
    told = np.isfinite(matrix.target[-1])
    found = {}
    for name, score in WITH_SHADOWS.items():
        values = np.asarray(score(matrix, rng.generator(seed, f"outsider/{name}")), dtype=np.float64)
        values = np.where(told, values, np.nan)
        found[name] = Finding(values[:candidates], values[candidates:], answers.spending.records)
    return found


def _padded(scores: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([scores, np.full(n - len(scores), np.nan)])
