"""What an outsider asks a released model, within its budget, and what it was told.

Every record is asked about once as it is; what is left of the budget goes to noisy copies. Known outsiders
are asked as well, since thresholds are calibrated on them: with too small a budget for all, they take at most
a quarter of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attacks.membership.outsider import COPIES, NOISE
from attacks.views.outsider import OutsiderView
from fedsim.core.data.records import Records
from fedsim.core.privacy.output import completed

ASKED_TOGETHER = 512
"""Records a call of `ask`; a served model computes as many at a time."""

SHARE_OF_OUTSIDERS = 0.25

Progress = Callable[[int, int], object]
"""Called with records asked about so far, and in all."""


@dataclass(frozen=True)
class Spending:
    """How a query budget is divided: the first so many candidates and known outsiders, and copies of each."""

    candidates: int
    outsiders: int
    copies: int

    @property
    def records(self) -> int:
        """Records that are asked about as they are."""
        return self.candidates + self.outsiders

    @property
    def queries(self) -> int:
        """Queries in all."""
        return self.records * (1 + self.copies)


def share_out(candidates: int, outsiders: int, queries: int | None) -> Spending:
    """Divide a budget, None: no limit.

    Raises:
        ValueError: there is not one query to spend, or nobody to ask about.
    """
    if candidates < 1 or (queries is not None and queries < 1):
        raise ValueError("an attack asks about one candidate at least")
    if queries is None or candidates + outsiders <= queries:
        records = candidates + outsiders
        copies = COPIES if queries is None else min(COPIES, queries // records - 1)
        return Spending(candidates, outsiders, copies)
    known = min(outsiders, max(int(queries * SHARE_OF_OUTSIDERS), queries - candidates))
    return Spending(min(candidates, queries - known), known, 0)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a released model told.

    candidates (n, classes), outsiders (m, classes): probabilities, classes that were not told sharing the
        rest; NaN where nothing was told
    candidates_kept (copies, n), outsiders_kept (copies, m): float64, whether a noisy copy has the record's
        own label as its likeliest class; NaN where nothing was told
    """

    spending: Spending
    candidates: np.ndarray
    outsiders: np.ndarray
    candidates_kept: np.ndarray
    outsiders_kept: np.ndarray

    def queries(self, copies: int) -> int:
        """Return what so many copies of each record cost, with the records themselves."""
        return self.spending.records * (1 + copies)


def ask_all(
    view: OutsiderView,
    candidates: Records,
    outsiders: Records,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Answers:
    """Spend the view's budget on candidates (n) and known outsiders (m).

    Known outsiders are asked first, so that a service that stops to answer has told what a threshold needs.
    All records are moved by the same noise: differences between them are not blurred by two draws. Its scale
    is `NOISE` times the records' own spread (Choquette-Choo et al. 2021, §3.2).
    """
    spending = share_out(len(candidates), len(outsiders), view.queries)
    known, people = _first(outsiders, spending.outsiders), _first(candidates, spending.candidates)
    records = Records.concatenate([known, people])
    counter = _Counter(spending.queries, progress)
    plain = completed(_ask(view, records.features, counter))
    scale = NOISE * np.sqrt(records.features.var(axis=0, dtype=np.float64).mean())
    shifts = (scale * rng.normal(size=(spending.copies, *records.shape))).astype(np.float32)
    kept = np.empty((spending.copies, len(records)))
    for row, shift in zip(kept, shifts, strict=True):
        told = completed(_ask(view, records.features + shift, counter))
        right = (told.argmax(axis=1) == records.labels).astype(np.float64)
        row[:] = np.where(np.isnan(told).any(axis=1), np.nan, right)
    return Answers(
        spending, plain[len(known) :], plain[: len(known)], kept[:, len(known) :], kept[:, : len(known)]
    )


def _first(records: Records, n: int) -> Records:
    return records.take(np.arange(n))


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, records: int) -> None:
        self._done += records
        if self._progress:
            self._progress(self._done, self._total)


def _ask(view: OutsiderView, features: np.ndarray, counter: _Counter) -> np.ndarray:
    """Return what the view tells, (n, classes) float64, asked `ASKED_TOGETHER` records at a time."""
    told = np.full((len(features), view.classes), np.nan)
    for start in range(0, len(features), ASKED_TOGETHER):
        part = features[start : start + ASKED_TOGETHER]
        told[start : start + len(part)] = view.ask(part)
        counter.add(len(part))
    return told
