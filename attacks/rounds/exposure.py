"""How exposed each record of a party would be, before there is a federation: what round decoding would see.

The channel of one round (`attacks.rounds.channel`) says by itself how far apart members and non-members will
lie, from a record's signature and the noise alone: no update has to be observed, and no shadow is trained. A
party knows its own records, the public settings and w_0, and takes the others' records to be like its own.
Its adversary is one who owns the party's records, not knowing which of them are trained on, and no member of
anyone else: those are noise with the covariance of the population, beside batch orders and DP's own noise.

    predicted separation   d_i = H_i / σ_i, in standard deviations
    AUC                    Φ(d_i / √2)
    TPR at FPR α           1 − Φ(Φ⁻¹(1 − α) − d_i)

both those of two Gaussians of equal variance (Green & Swets 1966; the trade-off curve of a Gaussian mechanism
with μ = d_i, Dong, Roth & Su 2022, eq. 6). Of the first round, where models are the least fitted and the
channel is the nearest to linear: later rounds, of which nobody knows w_{t−1} yet, can only add to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.rounds import decoding
from attacks.rounds import experiment as simulated
from attacks.rounds.channel import Reading
from attacks.rounds.experiment import Evidence, Experiment
from attacks.rounds.knowledge import Knowledge
from attacks.shadows.suite import federation_plan
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError

SETS, REPEATS = 300, 2
"""Simulated party-rounds whose residuals are the noise; pairs of contexts where signatures are measured."""


@dataclass(frozen=True, eq=False)
class Exposed:
    """What the channel predicts of n records.

    separation: d, (n,) float64; kind: of signature; cost: what was simulated, in rounds of a whole federation
    """

    separation: np.ndarray
    kind: str
    cost: float

    @property
    def auc(self) -> np.ndarray:
        """The AUC on each record over draws of its membership, (n,)."""
        from scipy.stats import norm

        return np.asarray(norm.cdf(self.separation / np.sqrt(2)))

    def tpr(self, alpha: float) -> np.ndarray:
        """Return the TPR on each record at FPR ``alpha``, (n,)."""
        from scipy.stats import norm

        return np.asarray(norm.sf(norm.isf(alpha) - self.separation))


def predict(view: ParticipantView, records: Records, prior: float, seed: int, sets: int = SETS) -> Exposed:
    """Predict how well a participant would tell which of a party's ``records`` are trained on in round 1.

    view: of the adversary, with w_0 and nothing else seen; its own records are not used
    prior: π, the share of the records that are trained on; sets: simulated party-rounds

    Raises:
        InputError: shadows cannot follow the strategy.
    """
    experiment = prepared(view, records, prior, seed, sets)
    kind, evidence = first_round(view, experiment)
    cost = experiment.cost(kind == "paired")
    return Exposed(read(experiment, kind, evidence).separation, kind, cost * len(experiment.plan.parties))


def prepared(view: ParticipantView, records: Records, prior: float, seed: int, sets: int) -> Experiment:
    """Return what is simulated: parties of true size, drawn from the records and between them."""
    own, sizes = view.settings.own, np.array(view.settings.sizes)
    others = tuple(k for k in range(view.settings.parties) if k != own)
    everyone = np.ones(len(records), bool)
    limit = float(sizes[list(others)].sum() / len(records))
    knowledge = Knowledge(
        records,
        np.full(len(records), -1),  # in any of the parties: so that each is made of records like these
        everyone,
        everyone,
        len(records),
        sizes,
        others,
        min(prior, limit),
    )
    plan, active = federation_plan(view, 1), decoding.chance_of_others(view)
    if active == 0:
        raise InputError("one party trains in a round: nobody else's update is in what it is sent")
    repeats = 0 if _plain(view) else REPEATS
    return Experiment.draw(plan, knowledge, sets, repeats, active, seed)


def first_round(view: ParticipantView, experiment: Experiment) -> tuple[str, Evidence]:
    """Return the kind of signature and the evidence of round 1, of an update of 0."""
    kind = "gradient" if _plain(view) else "paired"
    names, start = decoding.parameter_names(experiment.plan), view.initial
    nothing = np.zeros(sum(start[name].size for name in names))
    weights = max(1024, decoding.ENTRIES // (len(experiment.knowledge) + len(experiment.sets)))
    most = min(decoding.Effort().weights, weights)
    return kind, simulated.observe(experiment, start, nothing, 1, [kind], most)[kind]


def read(experiment: Experiment, kind: str, evidence: Evidence) -> Reading:
    """Return the channel's reading of the records by this kind of signature."""
    rows = decoding.drawn_rows(experiment, decoding.Effort().rows)
    targets = np.setdiff1d(np.arange(experiment.knowledge.candidates), rows)
    products = simulated.products(experiment, evidence, rows, targets)
    gathered = decoding.Gathered([]).with_round(experiment, products, len(rows))
    return decoding.readings_of(experiment, kind, gathered, rows, targets)[0].reading


def _plain(view: ParticipantView) -> bool:
    plan = federation_plan(view, 1)
    return decoding.follow_gradients(plan, range(len(plan.parties)))
