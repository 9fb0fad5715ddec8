"""Subject membership: is any record of this person in any party's training data (Suri et al. 2022)?

The adversary holds all of her records, but does not know which of them, if any, were trained on. Each is
scored by itself, or decoded from the updates with those of all persons, and a person's scores are made one:
their mean (the paper's average of losses), their largest, or their sum over √k, which weighs what k
independent records say (Stouffer et al. 1949).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attacks.declaration import EVERY_MODEL, FINAL_MODEL, FITTED, PULLED
from attacks.further import further
from attacks.membership import trajectory, update_regression
from attacks.signals import outputs
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records

Score = Callable[[ParticipantView, Records, np.random.Generator], np.ndarray]
"""(view, records, stream) → (n,) float64, higher where a record is likelier to be a member."""

HER_RECORDS = "all of her records"
BASELINE = "the number of her records"


@further(
    "persons", "scaled-logit", infers="whether a person is in the data", needs=HER_RECORDS,
    sees=FINAL_MODEL, assumes=FITTED, baseline=BASELINE, source="Suri et al. 2022",
)  # fmt: skip
def scaled_logit(view: ParticipantView, records: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the log-odds of the label at the final model, (n,): the order of the loss."""
    return outputs.scaled_logit(view.logits(view.final_round, records), records.labels)


@further(
    "persons", "loss-series", infers="whether a person is in the data", needs=HER_RECORDS,
    sees=EVERY_MODEL, assumes=FITTED, baseline=BASELINE, source="Suri et al. 2022 (across rounds)",
)  # fmt: skip
def loss_series(view: ParticipantView, records: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of −ℓ(w_t; z), (n,)."""
    return trajectory.loss_series(view, records, rng)


@further(
    "persons", "update-regression", infers="whether a person is in the data", needs=HER_RECORDS,
    sees=EVERY_MODEL, assumes=PULLED, baseline=BASELINE, source="ours, after Suri et al. 2022",
)  # fmt: skip
def regression(view: ParticipantView, records: Records, rng: np.random.Generator) -> np.ndarray:
    """Return each record's t-statistic in the updates, all decoded together, (n,)."""
    return update_regression.score(view, records, rng)


SCORES: Mapping[str, Score] = {
    "scaled-logit": scaled_logit,
    "loss-series": loss_series,
    "update-regression": regression,
}


def scored(
    view: ParticipantView, groups: Sequence[Records], score: Score, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the scores of several groups of records, all scored together and alike.

    Nothing is taken out of the updates, so that the adversary's own records look as those of others do.
    """
    together = score(view.as_outsider_of_itself(), Records.concatenate(list(groups)), rng)
    return np.split(together, np.cumsum([len(group) for group in groups])[:-1])


Aggregate = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(scores (n,), owner (n,) in 0…P−1, P) → (P,)."""


def mean(scores: np.ndarray, owner: np.ndarray, persons: int) -> np.ndarray:
    """Return the mean score of each person's records, (P,)."""
    counts = np.bincount(owner, minlength=persons)
    return np.asarray(np.bincount(owner, scores, minlength=persons) / np.maximum(counts, 1))


def largest(scores: np.ndarray, owner: np.ndarray, persons: int) -> np.ndarray:
    """Return the largest score of each person's records, (P,)."""
    best = np.full(persons, -np.inf)
    np.maximum.at(best, owner, scores)
    return best


def stouffer(scores: np.ndarray, owner: np.ndarray, persons: int) -> np.ndarray:
    """Return √k times the mean standardised score of each person's k records, (P,)."""
    spread = scores.std()
    standard = (scores - scores.mean()) / (spread if spread > 0 else 1.0)
    return mean(standard, owner, persons) * np.sqrt(np.bincount(owner, minlength=persons))


AGGREGATES: Mapping[str, Aggregate] = {"mean": mean, "largest": largest, "sum": stouffer}


def number_of_records(owner: np.ndarray, persons: int) -> np.ndarray:
    """Return how many records each person has, (P,): a guess that never touches a model."""
    return np.bincount(owner, minlength=persons).astype(np.float64)
