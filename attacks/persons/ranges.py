"""Range membership: is a record in the data that is *near* what the adversary knows of a person?

RaMIA (Tao & Shokri 2024, arXiv:2408.05131): instead of one point a range is asked about, here all records
that agree with what is known: numbers within a share of their range, some columns unknown. Points are drawn
(section 5.2: unknown columns as they occur among records that the adversary owns), each is scored by a
membership attack, and the mean of the upper part is the range's score (their trimmed average).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.attributes.problem import flat
from attacks.declaration import EVERY_MODEL, PULLED
from attacks.further import further
from fedsim.core.data.layout import ColumnLayout, Layout
from fedsim.core.data.records import Records

UPPER = 0.5
"""Share of the drawn points, those of the largest scores, whose mean is taken."""


@dataclass(frozen=True)
class Range:
    """What is known of a record: each number to within ``off`` of its encoded range, but not ``unknown``.

    unknown: columns of which nothing is known
    """

    layout: Layout
    off: float
    unknown: tuple[ColumnLayout, ...] = ()

    @property
    def known_numbers(self) -> list[ColumnLayout]:
        """The numbers of which something is known."""
        return [column for column in self.layout if column.kind == "number" and column not in self.unknown]


def blurred(records: Records, known: Range, rng: np.random.Generator) -> Records:
    """Return what the adversary knows of ``records``: numbers off by up to ``off``, unknown columns 0.

    The true record is somewhere in the range around it, not in its middle.
    """
    rows = flat(records).copy()
    _move(rows, known, rng)
    for column in known.unknown:
        rows[:, column.features] = 0
    return Records(rows.reshape(records.features.shape), records.labels)


def middle(asked: Records, known: Range, owned: Records) -> Records:
    """Return the one likeliest record of each range: as known, unknown columns as they are most often.

    owned: the adversary's own records. Of a number the median, of a category the most frequent value.
    """
    rows, own = flat(asked).copy(), flat(owned)
    for column in known.unknown:
        block = own[column.known(own)][:, column.features]
        if not len(block):
            continue
        usual = np.zeros(block.shape[1], np.float32)
        if column.kind == "number":
            usual[0] = np.median(block[:, 0])
        else:
            usual[block.sum(axis=0).argmax()] = 1
        rows[:, column.features] = usual
    return Records(rows.reshape(asked.features.shape), asked.labels)


def points(asked: Records, known: Range, owned: Records, rng: np.random.Generator) -> Records:
    """Return one point of each range, drawn at random; what is unknown comes from one own record together.

    asked: as `blurred` gives it; owned: likewise encoded. A record of the same label is taken where there is.
    """
    rows, own = flat(asked).copy(), flat(owned)
    _move(rows, known, rng)
    donor = rng.integers(len(own), size=len(rows))
    for label in np.unique(asked.labels):
        alike = np.flatnonzero(owned.labels == label)
        of_label = asked.labels == label
        if len(alike):
            donor[of_label] = rng.choice(alike, int(of_label.sum()))
    for column in known.unknown:
        rows[:, column.features] = own[donor][:, column.features]
    return Records(rows.reshape(asked.features.shape), asked.labels)


def _move(rows: np.ndarray, known: Range, rng: np.random.Generator) -> None:
    """Move every known number by up to ``off`` of its range, in place, and never out of it."""
    for column in known.known_numbers:
        step = known.off * (column.high - column.low) * rng.uniform(-1, 1, len(rows))
        there = column.known(rows)
        moved = np.clip(rows[:, column.start] + step, column.low, column.high)
        rows[there, column.start] = moved[there]


@further(
    "persons", "range membership", infers="whether a record near what is known is in the data",
    needs="numbers to within a few per cent, some columns not at all", sees=EVERY_MODEL, assumes=PULLED,
    baseline="the likeliest single record of the range", source="Tao & Shokri 2024 (RaMIA)",
)  # fmt: skip
def trimmed_mean(scores: Sequence[np.ndarray], upper: float = UPPER) -> np.ndarray:
    """Return the mean of the largest scores of each range's points, (n,).

    scores: m arrays (n,), one per point drawn
    """
    ordered = np.sort(np.stack(scores), axis=0)  # (m, n)
    return np.asarray(ordered[-max(1, round(upper * len(ordered))) :].mean(axis=0))
