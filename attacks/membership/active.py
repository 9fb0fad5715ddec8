"""Attacks that read what an active adversary did to the model (`attacks.deviation`)."""

from __future__ import annotations

import numpy as np

from attacks.declaration import EVERY_MODEL, attack
from attacks.signals import outputs
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records


@attack(
    "gradient-ascent",
    sees=EVERY_MODEL,
    assumes="a record that someone trains on comes back further when its loss was pushed up",
    source="Nasr et al. 2019",
    active="gradient-ascent",
)
def recovery(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return φ(w_T; z) minus its mean over the models w_t right after an ascent, (n,) float64.

    φ is the log-odds of the label. How far a record has come back from where the ascents had pushed it: a
    member's own party pulls it back in every round (Nasr et al. 2019). How hard the record is for anyone
    is in both terms and cancels. A view of no ascent scores 0.
    """
    raised = [t for t in view.ascents if t in view.models and t < view.final_round]
    if not raised:
        return np.zeros(len(candidates))
    final, *after = (
        outputs.scaled_logit(view.logits(t, candidates), candidates.labels)
        for t in [view.final_round, *raised]
    )
    return final - np.mean(after, axis=0)
