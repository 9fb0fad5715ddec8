"""Round decoding: who is in the others' update, by simulated rounds of single parties (ours).

The update of one observed round is a sum over the other parties and, nearly, over their records. Here it is
read as a channel (`attacks.rounds.channel`) on which every record owned may have sent its signature, whose
noise is what simulated rounds of the parties show it to be, and on which the members that the adversary does
not own are a draw from the population of those that it does. So it needs neither all possible members, as
decoding whole shadow federations does, nor whole federations.

Nearest relatives: GLiR (Leemann, Pawelczyk & Kasneci 2023) and the covariance attack (Azize & Basu 2024),
which whiten gradients by the population's covariance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from attacks.declaration import ALIKE_ROUNDS, FIRST_MODELS, attack
from attacks.rounds import experiment as simulated
from attacks.rounds import knowledge as owned
from attacks.rounds.channel import Intercepts, Products, Reading, read_rows, read_targets
from attacks.rounds.experiment import Experiment
from attacks.rounds.knowledge import Knowledge
from attacks.rounds.noise import noise_in_update
from attacks.rounds.updates import others_update, readable
from attacks.shadows.plan import FederationPlan
from attacks.shadows.suite import federation_plan
from attacks.views.participant import ParticipantView
from fedsim.core import rng as streams
from fedsim.core.data.records import Records
from fedsim.core.scenario.adversary import AdversarySettings

NAME = "round-decoding"

ROUNDS = (1, 2, 3, 5)
"""t of the updates that are read where the training is without noise: later ones tell little more."""

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""λ to choose from, by the largest predicted separation, in units of a signature's mean square."""

ENTRIES = 2**27
"""Coordinates of all records and sets, beyond which updates are projected: half a GiB of each kind."""

LABOUR = 2**29
"""Coordinates of all records in all rounds, beyond which not all noisy rounds are read: minutes of a core."""


@dataclass(frozen=True)
class Effort:
    """What round decoding assumes and spends.

    prior: π, the share of members among the candidates
    rounds: t ≥ 1 of the updates that are read, as long as they are seen and ``federations`` are not spent
    noisy_rounds: the same where a party adds the noise of DP-SGD: it is drawn anew in every round, so that
        each tells as much as the first. Not where parties come and go, of which each is kept by itself
    sets: simulated party-rounds whose residuals are the noise
    noisy_sets: the same where every party adds the noise of DP-SGD, which is known and hides the rest
    repeats: pairs of contexts in which a signature is measured; 0: none is
    gradients: whether signatures by gradients are read as well, where they apply
    federations: work of all rounds, in whole federations, a quarter of what LiRA trains by default; the first
        round is always read. A further round tells more than a further kind of signature: on location the
        first two rounds by gradients reach an AUC of .91, the first by both kinds .89 for three times the
        work; by both kinds the first two have .91 too
    rows: signatures in the covariance, at most: of more records a sample
    weights: coordinates that are kept of an update, at most
    """

    prior: float = 0.5
    rounds: tuple[int, ...] = ROUNDS
    noisy_rounds: tuple[int, ...] = tuple(range(1, 21))
    sets: int = 600
    noisy_sets: int = 150
    repeats: int = 1
    gradients: bool = True
    federations: float = 64.0
    rows: int = 2048
    weights: int = 65536


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was found, and what it cost.

    scores: (n,) float64, mean over the kinds of signature of ``ratios``, (n,) log likelihood ratios each,
        times one number where no member is unknown, see `_stretching`
    readings: by kind of signature, one in all or one a round
    rounds: those read; cost: in whole federations
    """

    scores: np.ndarray
    ratios: dict[str, np.ndarray]
    readings: dict[str, list[Reading]]
    rounds: list[int]
    cost: float

    def taken(self, index: np.ndarray) -> Outcome:
        """Return what was found of the candidates ``index``, in that order."""
        ratios = {kind: ratio[index] for kind, ratio in self.ratios.items()}
        readings = {kind: [each.taken(index) for each in parts] for kind, parts in self.readings.items()}
        return replace(self, scores=self.scores[index], ratios=ratios, readings=readings)


@attack(
    NAME,
    sees=FIRST_MODELS,
    assumes=ALIKE_ROUNDS,
    source="ours: simulated rounds of single parties",
    threshold=0.0,
    simulates=True,
)
def score(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return every candidate's log likelihood ratio of being in the others' updates, (n,) float64.

    0 where no update can be read: the server's step cannot be undone, or w_{t−1} and w_t were not both seen.

    Raises:
        InputError: shadows cannot follow the strategy.
    """
    effort = effort_of(view.assumptions)
    return decode(view, candidates, int(rng.integers(2**62)), effort).scores


def effort_of(settings: AdversarySettings) -> Effort:
    """Return the effort that a scenario asks for."""
    effort = Effort(prior=settings.prior)
    if settings.decoded_rounds is None:
        return effort
    rounds = effort.rounds[: settings.decoded_rounds]
    return replace(effort, rounds=rounds, noisy_rounds=rounds, federations=math.inf)


def decode(view: ParticipantView, candidates: Records, seed: int, effort: Effort | None = None) -> Outcome:
    """Return what `score` does, and what it was made of."""
    order, known = owned.canonical_order(candidates), view.candidate_party
    if known is not None and len(known) == len(candidates):
        view = replace(view, candidate_party=np.asarray(known)[order])
    return _decode(view, candidates.take(order), seed, effort or Effort()).taken(np.argsort(order))


def planned_cost(view: ParticipantView, candidates: Records, effort: Effort | None = None) -> float:
    """Return what `decode` would simulate, in whole federations, without simulating it."""
    effort = effort or Effort()
    return _affordable(view, _experiment(view, candidates, 0, effort), effort)[2]


def _experiment(view: ParticipantView, candidates: Records, seed: int, effort: Effort) -> Experiment:
    plan = federation_plan(view, view.settings.rounds)
    known = owned.of_view(view, candidates, effort.prior)
    noisy = all(noise_in_update(plan, [k]) > 0 for k in known.others)
    sets = min(effort.sets, effort.noisy_sets) if noisy else effort.sets
    return Experiment.draw(plan, known, sets, effort.repeats, chance_of_others(view), seed)


def _decode(view: ParticipantView, candidates: Records, seed: int, effort: Effort) -> Outcome:
    plan = federation_plan(view, view.settings.rounds)
    experiment = _experiment(view, candidates, seed, effort)
    known = experiment.knowledge
    rounds, kinds, spent = _affordable(view, experiment, effort)
    rows = drawn_rows(experiment, effort.rows)
    targets = np.setdiff1d(np.arange(known.candidates), rows)
    weights = min(effort.weights, max(1024, ENTRIES // (len(known) + len(experiment.sets))))
    gathered = {kind: Gathered([]) for kind in kinds}
    for t in rounds:
        start = view.initial if t == 1 else view.models[t - 1]
        update = others_update(view, plan, t, parameter_names(plan)) * len(plan.parties) / plan.participants
        for kind, evidence in simulated.observe(experiment, start, update, t, kinds, weights).items():
            products = simulated.products(experiment, evidence, rows, targets)
            gathered[kind] = gathered[kind].with_round(experiment, products, len(rows))
    readings = {
        kind: readings_of(experiment, kind, found, rows, targets)
        for kind, found in gathered.items()
        if found.parts
    }
    ratios = {kind: _ratio(experiment, found) for kind, found in readings.items()}
    scores = np.mean(list(ratios.values()), axis=0) if ratios else np.zeros(len(candidates))
    scores = _stretching(known, [each for found in readings.values() for each in found]) * scores
    of_candidates = {kind: [each.reading for each in found] for kind, found in readings.items()}
    return Outcome(scores, ratios, of_candidates, rounds, spent)


def chance_of_others(view: ParticipantView) -> float:
    """Return ρ, the probability that another party takes part in a round that the adversary takes part in."""
    settings = view.settings
    return (settings.participants - 1) / max(1, settings.parties - 1) if settings.participants > 1 else 0.0


def parameter_names(plan: FederationPlan) -> list[str]:
    """Return the names of the parameters that an update is of, in its order."""
    from fedsim.core.models import zoo

    module = zoo.build(plan.model, plan.input_shape, plan.classes)
    return [name for name, _ in module.named_parameters()]


def follow_gradients(plan: FederationPlan, parties: Iterable[int]) -> bool:
    """Whether signatures by gradients apply to these parties: all of them train by SGD without momentum."""
    trainings = [plan.training_of(k) for k in parties]
    return all(training.optimizer == "sgd" and not training.momentum for training in trainings)


def _affordable(
    view: ParticipantView, experiment: Experiment, effort: Effort
) -> tuple[list[int], list[str], float]:
    """Return the rounds to read, by which kinds of signature, and what that costs.

    Signatures are measured in pairs where so many rounds as are read without noise can be paid for so, or
    gradients do not apply.
    """
    wanted = effort.rounds
    if experiment.noise and experiment.active == 1:
        coordinates = len(experiment.knowledge) * sum(array.size for array in view.initial.values())
        wanted = effort.noisy_rounds[: max(len(effort.rounds), LABOUR // coordinates)]
    seen = readable(view, experiment.plan, wanted)
    plain = effort.gradients and follow_gradients(experiment.plan, experiment.knowledge.others)
    affordable = experiment.cost(True) * min(len(seen), len(effort.rounds)) <= effort.federations
    measured = effort.repeats > 0 and (affordable or not plain)
    kinds = ["paired"] * measured + ["gradient"] * plain
    price = experiment.cost(measured)
    rounds = seen[: max(1, int(min(len(seen), effort.federations / price)))] if kinds else []
    return rounds, kinds, price * len(rounds)


def drawn_rows(experiment: Experiment, most: int) -> np.ndarray:
    """Return the records whose signatures are rows of the channel: those drawn from, or a sample of them.

    Where no member is unknown, those that are known to be in no other party vary nothing, and are no rows.
    """
    rows = np.flatnonzero(experiment.knowledge.drawable)
    rows = rows[simulated.variances(experiment, rows, 0.0).weight[: len(rows)] > 0]
    if len(rows) <= most:
        return rows
    stream = streams.generator(experiment.seed, "round-decoding/rows")
    return np.sort(stream.choice(rows, most, replace=False))


@dataclass(frozen=True)
class Gathered:
    """The products of rounds by one kind of signature, scaled to signatures of a mean square of about 1.

    parts: one for all rounds, added up as they come, since each takes as much memory as a covariance; one a
        round where parties come and go
    scale: by which the first was multiplied
    """

    parts: list[Products]
    scale: float = 1.0

    def with_round(self, experiment: Experiment, products: Products, signatures: int) -> Gathered:
        """Return them with another round's, the first ``signatures`` of whose rows are signatures."""
        scale = _factor(products, signatures)
        if self.parts and experiment.noise:  # the same in every round, and so must be the scale
            scale = self.scale
        parts = [*self.parts, products.scaled(scale)]
        if experiment.active == 1:
            parts = [Products.total(parts)]
        return Gathered(parts, self.scale if self.parts else scale)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The candidates' reading, and from the rows' `Reading.tempering` and `Reading.stretching`."""

    reading: Reading
    tempering: float
    stretching: float


def readings_of(
    experiment: Experiment, kind: str, gathered: Gathered, rows: np.ndarray, targets: np.ndarray
) -> list[Calibrated]:
    """Return the candidates' reading in all rounds at once; in each alone where parties come and go."""
    noise = experiment.noise * gathered.scale
    centres = simulated.intercepts(experiment, kind, rows, targets)
    return [_best(experiment, part, centres, rows, targets, noise) for part in gathered.parts]


def _factor(products: Products, signatures: int) -> float:
    """Return 1 over the mean square of a signature."""
    square = float(np.mean(np.diag(products.gram)[:signatures]))
    return 1 / square if square > 0 else 1.0


def _best(
    experiment: Experiment,
    products: Products,
    centres: Intercepts,
    rows: np.ndarray,
    targets: np.ndarray,
    noise: float,
) -> Calibrated:
    """Return the candidates' reading by the λ of the rows' largest predicted separation.

    That needs no truth. All is found from the rows, so that nothing said of a record that is decoded alone
    depends on the others that are.
    """
    spread = simulated.variances(experiment, rows, noise)
    read = {ridge: read_rows(products, spread, ridge, len(rows), centres) for ridge in RIDGES}
    ridge = max(RIDGES, key=lambda ridge: float(read[ridge].separation.mean()))
    inside = np.flatnonzero(rows < experiment.knowledge.candidates)
    found, priors = read[ridge].taken(inside), _priors(experiment, rows)
    if len(targets):
        both = Reading.joined([found, read_targets(products, spread, ridge, centres)])
        found = both.taken(np.argsort(np.concatenate([rows[inside], targets])))
    return Calibrated(found, read[ridge].tempering(priors), read[ridge].stretching(priors))


def _priors(experiment: Experiment, records: np.ndarray) -> np.ndarray:
    """Return π of each of the records, (n,): its share that the mean of the update expects.

    0 of one that is decoded alone: it is expected as one of the unknown members, who are alike.
    """
    known = experiment.knowledge
    return experiment.active * known.prior * known.asked[records]


def _ratio(experiment: Experiment, readings: list[Calibrated]) -> np.ndarray:
    """Return the log likelihood ratio of membership, (n,): Σ_t log(ρ exp(ratio of being in U_t) + 1 − ρ)."""
    active, priors = experiment.active, _priors(experiment, np.arange(experiment.knowledge.candidates))
    ratios = (each.tempering * each.reading.likelihood_ratio(priors) for each in readings)
    if active == 1:
        return np.sum(list(ratios), axis=0)
    return np.sum([np.logaddexp(np.log(active) + each, np.log1p(-active)) for each in ratios], axis=0)


def _stretching(knowledge: Knowledge, readings: list[Calibrated]) -> float:
    """Return what all scores are multiplied by, so that `combined` may add them to others' log-odds.

    1 where members are unknown: what spreads further than predicted is then mostly they, and was tempered.
    Else simulated rounds say all of the noise, and it is gain. No order among candidates depends on it.
    """
    if not readings or any(knowledge.unknown(*population) >= 1 for population in knowledge.populations()):
        return 1.0
    return float(np.mean([each.stretching / each.tempering for each in readings]))
