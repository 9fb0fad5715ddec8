"""Subject membership where the records are letters: is any letter of this patient in any party's data?

As in `attacks.persons.subject`, whose sums over a person's records are taken: the adversary holds letters of
hers, and does not know whether any was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attacks.declaration import EVERY_MODEL, FINAL_MODEL, FITTED
from attacks.further import further
from attacks.membership import trajectory
from attacks.persons.subject import BASELINE, Score
from attacks.text import membership
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records

HER_LETTERS = "letters of hers"
WHETHER = "whether a patient's letters are in the data"


@further(
    "persons", "letters: reference", infers=WHETHER, needs=HER_LETTERS, sees="w_0 and the final model",
    assumes=FITTED, baseline=BASELINE, source="Suri et al. 2022, of Carlini et al. 2021",
)  # fmt: skip
def reference(view: ParticipantView, letters: Records, rng: np.random.Generator) -> np.ndarray:
    """Return by how many nats a token w_T finds each letter likelier than w_0, (n,)."""
    return membership.reference(view, letters, rng)


@further(
    "persons", "letters: loss-series", infers=WHETHER, needs=HER_LETTERS, sees=EVERY_MODEL,
    assumes=FITTED, baseline=BASELINE, source="Suri et al. 2022 (across rounds)",
)  # fmt: skip
def loss_series(view: ParticipantView, letters: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of each letter's −ℓ(w_t; z), (n,)."""
    return trajectory.loss_series(view, letters, rng)


@further(
    "persons", "letters: min-k++", infers=WHETHER, needs=HER_LETTERS, sees=FINAL_MODEL,
    assumes=FITTED, baseline=BASELINE, source="Suri et al. 2022, of Zhang et al. 2025",
)  # fmt: skip
def min_k_plus(view: ParticipantView, letters: Records, rng: np.random.Generator) -> np.ndarray:
    """Return each letter's Min-K %++ score at the final model, (n,)."""
    return membership.min_k_plus(view, letters, rng)


SCORES: Mapping[str, Score] = {"reference": reference, "loss-series": loss_series, "min-k++": min_k_plus}
