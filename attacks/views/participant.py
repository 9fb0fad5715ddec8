"""What an adversary saw of a federation: the only input an attack has.

ParticipantView   an ordinary party; and, by `coalition.unite`, several together
ServerView        the server, who sees every party's answer, or their mean under secure aggregation
OutsiderView      who can ask the released model, through its output policy

A `ParticipantView` is the view of one ordinary party: the global models it was sent, its own answers, its
own records and the settings that are public. It holds no membership bit of anyone but its owner. The
malicious client writes it as the run goes (`record_*`), a file per round, and reads it back (`load_view`):

    settings.json            what everybody knows
    own.safetensors          the owner's training and held-out records
    round-003.safetensors    w_3, the global model after 3 rounds, as it was sent (round-000: w_0)
    start.safetensors        where simulations begin, if w_0 was not seen: of runs that fedsim did not make
    reply-003.safetensors    the owner's answer in round 3, trained from w_2
    assumptions.json         what the adversary is assumed to know and own besides
    auxiliary.safetensors    records that it owns besides
    candidates.safetensors   the records whose membership is asked
    worlds.safetensors       what of these it owns in each world that is compared: see `views.worlds`
    poison.safetensors       what a poisoning adversary adds to its training records
    raised.safetensors       the records whose loss an ascending adversary raises
    ascent-003.safetensors   what an ascending adversary added to its answer in round 3

An accomplice keeps ``own`` and ``reply-003`` alike. What the server keeps has the same form:

    answer-003-001.safetensors   what party 1 answered in round 3, trained from w_2
    sum-003.safetensors          instead, under secure aggregation: the answers' mean, weighted by records
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from attacks.signals import outputs
from attacks.views.settings import AVERAGING, PublicSettings, Weights, module_of
from fedsim.core.data.records import Pool, Records
from fedsim.core.scenario.adversary import AdversarySettings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class ParticipantView:
    """What one party saw: in round t (1..T) it is sent w_{t−1} and answers, w_t is the answers' aggregate.

    models: round t → w_t, by parameter name; w_T last. Rounds in which it was not drawn are missing.
    own_replies: round t → the model it answered in round t.
    assumptions: what it is assumed to know and own besides
    auxiliary: records that it owns besides, with their party where it knows it
    candidate_party: (n,) int64, index of each candidate's party, −1 where unknown; None until the candidates
        are known
    candidate_person, own_train_person, own_heldout_person: (n,) int64, whose each record is, numbered alike
        in all of them and in ``auxiliary``; None where the table names no persons
    poison: what a poisoning adversary trains on beside own_train
    ascents: round t → what an ascending adversary added to its answer in round t
    own_party: (n_train,) int64, in a coalition the party that holds each record of own_train; None where all
        are the owner's
    start: w_0 where it is not one of ``models``; simulations begin with it
    raised: the records whose loss an ascending adversary increases by moving its answers
    """

    settings: PublicSettings
    models: dict[int, Weights]
    own_replies: dict[int, Weights]
    own_train: Records
    own_heldout: Records
    assumptions: AdversarySettings = field(default_factory=AdversarySettings)
    auxiliary: Pool | None = None
    candidate_party: np.ndarray | None = None
    poison: Records | None = None
    ascents: dict[int, Weights] = field(default_factory=dict)
    own_party: np.ndarray | None = None
    start: Weights | None = None
    raised: Records | None = None
    candidate_person: np.ndarray | None = None
    own_train_person: np.ndarray | None = None
    own_heldout_person: np.ndarray | None = None
    # Several attacks ask for the same logits. The records are kept too, so that their id is not used again.
    _kept: dict[tuple[int, int], tuple[Records, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def initial(self) -> Weights:
        """w_0, which it was sent, whether or not attacks look at it."""
        return self.models[0] if self.start is None else self.start

    @property
    def final_round(self) -> int:
        """The last round whose model was seen."""
        return max(self.models)

    @property
    def final_model(self) -> Weights:
        """The last global model that was seen, w_T in a whole run."""
        return self.models[self.final_round]

    @property
    def trained_rounds(self) -> list[int]:
        """The rounds t ≥ 1 whose w_t was seen, in order."""
        return sorted(t for t in self.models if t > 0)

    def module(self, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
        """Return the public architecture with these weights, in evaluation mode."""
        return module_of(self.settings, weights)

    def logits(self, t: int, records: Records) -> np.ndarray:
        """Return the answers of w_t on ``records``, (n, classes) float64; computed once."""
        key = (t, id(records))
        if key not in self._kept:
            answers = outputs.logits(self.module(self.models[t]), records.features)
            self._kept[key] = (records, answers.astype(np.float32))  # float32 is what the model computed
        return self._kept[key][1].astype(np.float64)

    def others_update(self, t: int) -> Weights | None:
        """Return the others' part of the step w_t − w_{t−1}, float64 by parameter name.

        The owner's part is its share of (own reply − w_{t−1}), n_own / N where all parties take part; else it
        does not know who did, and assumes equal weights. Nothing is taken out in a round it did not answer
        in, nor where the new model is not the average of the answers as they were sent (other strategies,
        and central DP, which clips them). None where either model was not seen.
        """
        if t not in self.models or t - 1 not in self.models:
            return None
        before = {name: array.astype(np.float64) for name, array in self.models[t - 1].items()}
        step = {name: self.models[t][name] - array for name, array in before.items()}
        reply = self.own_replies.get(t)
        if reply is None or self.settings.strategy not in AVERAGING or self.settings.central_dp is not None:
            return step
        share = self.settings.own_share
        return {name: step[name] - share * (reply[name] - array) for name, array in before.items()}

    def as_outsider_of_itself(self) -> ParticipantView:
        """Return the same view with nothing to take out of an update.

        For calibration: on the owner's own records the owner's own update is the signal.
        """
        return replace(self, own_replies={})
