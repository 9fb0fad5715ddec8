"""What every shadow federation repeats of the target, and what chance decides in each: who takes part in a
round, and on which batches it trains.

Every random number of a shadow comes from streams of its own, keyed by its number, so that neither the other
shadows nor the way in which the work is divided changes what it becomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from fedsim.core.errors import InputError, suggestion
from fedsim.core.privacy.plan import Plan, steps_per_round
from fedsim.core.scenario.protection import NO_DEFENCE, DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

STRATEGIES: dict[str, dict[str, float]] = {
    "fedavg": {},
    "fedprox": {"proximal_mu": 0.0},
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.0},
    "fedadagrad": {"eta": 1e-1, "beta_1": 0.0, "beta_2": 0.0, "tau": 1e-3},
    "fedadam": {"eta": 1e-1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedyogi": {"eta": 1e-2, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
}
"""The strategies that shadows can follow, with the defaults of their options, which are Flower's."""


@dataclass(frozen=True)
class PartyTraining:
    """What is public of a party's training: its number of records, DP-SGD where it is on, other defences."""

    size: int
    dp: Plan | None = None
    defence: DefenceSettings = NO_DEFENCE


@dataclass(frozen=True)
class Ascent:
    """What an ascending party adds to answers: rate · Σ ∇ℓ of the records it raises (`attacks.deviation`).

    rounds: 1…T, in which it does; limit: how many times as long as what it learnt the step is at most
    """

    party: int
    rounds: tuple[int, ...]
    rate: float
    limit: float


@dataclass(frozen=True)
class FederationPlan:
    """The public settings of a federation.

    input_shape: of one record's features
    training: common to all parties, see `training_of`; private_training: of those with DP, where it differs
    participants: number of parties that train in a round
    options: of the strategy, by Flower's names; what is missing has Flower's default
    ascent: of the adversary, where it ascends

    Raises:
        InputError: shadows cannot follow the strategy.
        ValueError: the number of participants is not in 1…parties; a private party mixes records.
    """

    model: ModelSettings
    input_shape: tuple[int, ...]
    classes: int
    rounds: int
    training: TrainingSettings
    parties: tuple[PartyTraining, ...]
    participants: int
    strategy: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)
    ascent: Ascent | None = None
    private_training: TrainingSettings | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            hint = suggestion(self.strategy, STRATEGIES)
            raise InputError(f"federation.strategy = '{self.strategy}': no shadow can follow it{hint}")
        if not 1 <= self.participants <= len(self.parties):
            raise ValueError(f"{self.participants} participants of {len(self.parties)} parties")
        for key in (key for k in self.private for key in self.parties[k].defence.mixes_records):
            raise ValueError(f"{key} mixes records: under DP-SGD no gradient would be of one record alone")

    @property
    def sizes(self) -> np.ndarray:
        """Number of records of every party, (parties,) int."""
        return np.array([party.size for party in self.parties])

    @property
    def by_person(self) -> bool:
        """Whether a party clips the gradient of a person with all of her records."""
        return any(self.dp(k).unit == "person" for k in self.private)

    @property
    def plain(self) -> list[int]:
        """The parties without DP."""
        return [k for k, party in enumerate(self.parties) if party.dp is None]

    @property
    def private(self) -> list[int]:
        """The parties with DP."""
        return [k for k, party in enumerate(self.parties) if party.dp is not None]

    def option(self, name: str) -> float:
        """Return the value of an option of the strategy."""
        return float(self.options.get(name, STRATEGIES[self.strategy][name]))

    def ascends(self, party: int, t: int) -> bool:
        """Return whether the party ascends in round t, 1…T."""
        return self.ascent is not None and party == self.ascent.party and t in self.ascent.rounds

    @property
    def proximal_mu(self) -> float:
        """FedProx's μ; 0 under any other strategy."""
        return self.option("proximal_mu") if self.strategy == "fedprox" else 0.0

    def dp(self, party: int) -> Plan:
        """Return the DP-SGD of a private party."""
        dp = self.parties[party].dp
        assert dp is not None
        return dp

    def training_of(self, party: int) -> TrainingSettings:
        """Return the training of a party, with its own weight decay and epochs."""
        private = self.private_training if self.parties[party].dp is not None else None
        return self.parties[party].defence.applied_to(private or self.training)

    def steps(self, party: int) -> int:
        """Return the number of optimizer steps of the party in a round, unless it stops early."""
        return self._steps[party]

    @cached_property
    def _steps(self) -> list[int]:
        return [
            party.dp.steps_per_round if party.dp else steps_per_round(self.training_of(k), party.size)
            for k, party in enumerate(self.parties)
        ]

    def batches_per_epoch(self, party: int) -> int:
        """Return ⌈n / batch⌉."""
        return -(-self.parties[party].size // self.training_of(party).batch)

    def resized(self, sizes: Sequence[int]) -> FederationPlan:
        """Return the plan for other party sizes; DP keeps its sample rate and expected batch."""
        pairs = zip(self.parties, sizes, strict=True)
        return replace(self, parties=tuple(replace(party, size=int(size)) for party, size in pairs))
