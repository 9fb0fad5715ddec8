"""The white-box audit of a whole party: its plan, its rounds, its ledger and the ε that it answers with."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field, replace
from typing import Any, cast
from unittest import mock

import numpy as np
from torch import nn

from fedsim.audit.settings import AuditSettings
from fedsim.audit.white_box import Target, white_box
from fedsim.core.data.records import Records
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import PrivateTrainingSettings, TrainingSettings
from fedsim.core.training import dp
from fedsim.core.training.draws import Draws
from fedsim.core.training.steps import LocalTraining
from mutations.world import FEATURES, a_context, a_party, metrics, module, one_round

from flwr.app import ConfigRecord, Context  # isort: skip

# C = 4: noise that is not scaled by it is too little. Twelve rounds: one round's ε is far from the run's. The
# largest bound that 80 guesses can give is 5.4 and correct code gives 1: there is room on both sides of 2.
# No budget: what the accountant says is under audit, not whether the party stops in time.
TARGET = DPSettings(epsilon=2.0, clipping_norm=4.0, budget=1e6)
TRAINING = TrainingSettings(batch=24, steps=6)
N, ROUNDS = 64, 12
SETTINGS = AuditSettings(canaries=500, guesses=80)


@dataclass(frozen=True)
class Finding:
    """lower: the audit's bound on ε (95 %); claimed: the least ε that the party planned or answered with."""

    lower: float
    claimed: float

    @property
    def caught(self) -> bool:
        return self.lower > self.claimed


def audit(path: str) -> Finding:
    """Audit the party on ``path``."""
    plan = make_plan(TARGET, TRAINING, N, ROUNDS)
    stream = np.random.default_rng(1)
    records = Records(stream.normal(size=(N, FEATURES)).astype(np.float32), stream.integers(0, 3, N))
    party = _AuditedParty(path)
    found = white_box(SETTINGS, Target(plan, module(path), records, party.train))
    return Finding(max(found.lower.values()), min(found.upper, party.answered))


@dataclass
class _AuditedParty:
    """A party that trains, round after round, what the auditor hands it; each run begins with a new context.

    answered: the ε of its latest answer
    """

    path: str
    answered: float = 0.0
    run: int = -1
    round: int = 0
    context: Context = field(default_factory=a_context)

    def train(
        self,
        start: nn.Module,
        records: Records,
        local: LocalTraining,
        plan: Plan,
        draws: Draws,
        /,
        *,
        watch: dp.Watch | None,
    ) -> None:
        """Train ``start`` in place as `participant.train` does, from its own draws, watched."""
        if self.round in (0, plan.rounds):
            self.round, self.run, self.context = 0, self.run + 1, a_context()
            self.context.state["plan"] = ConfigRecord(cast(Any, dataclasses.asdict(plan)))
            self.context.state["ledger"] = ConfigRecord(cast(Any, Ledger().to_config()))
        self.round += 1
        party = a_party(self.path, game=self.run)
        private = PrivateTrainingSettings.model_validate(local.settings.model_dump(exclude={"private"}))
        training = local.settings.model_copy(update={"private": private})
        party = replace(
            party,
            module=start,
            records=replace(party.records, train=records),
            scenario=party.scenario.model_copy(update={"training": training}),
        )
        with mock.patch.object(dp, "train_private", functools.partial(dp.train_private, watch=watch)):
            answer = one_round(party, self.context, self.round, start)
        self.answered = metrics(answer)["epsilon"]
