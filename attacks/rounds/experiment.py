"""One round's evidence: the channel's inner products, from simulated rounds of the other parties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.rounds.channel import Intercepts, Products, Variances
from attacks.rounds.coordinates import Sketch, scale_of
from attacks.rounds.knowledge import Knowledge
from attacks.rounds.noise import noise_in_update, silenced
from attacks.rounds.party_rounds import Compress, MemberSets, cost, simulate
from attacks.rounds.sets import Context, design, draw_contexts, draw_sets, fillers
from attacks.rounds.signatures import fit, gradient, paired
from attacks.shadows.plan import FederationPlan
from attacks.views.settings import Weights
from fedsim.core import rng
from fedsim.core.data.records import Records

PILOTS = 512
"""Records whose gradients say how to scale coordinates before they are projected."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """What is simulated, the same in every round: member sets and contexts.

    plan: without the noise that ``noise`` accounts for, τ²
    pool: the knowledge's records, then the interpolated ones
    presence: (S, R) float32, how much of a record is in a set; expected: (R,), its mean in the update
    active: ρ, the probability that one of the others takes part in a round in which the adversary does
    """

    plan: FederationPlan
    knowledge: Knowledge
    pool: Records
    sets: MemberSets
    contexts: list[Context]
    presence: np.ndarray
    active: float
    noise: float
    seed: int

    @staticmethod
    def draw(
        plan: FederationPlan, knowledge: Knowledge, sets: int, repeats: int, active: float, seed: int
    ) -> Experiment:
        """Draw S = ``sets`` member sets, and contexts that measure every signature ``repeats`` times."""
        between = fillers(knowledge, seed)
        drawn = draw_sets(knowledge, between, sets, seed)
        return Experiment(
            silenced(plan),
            knowledge,
            Records.concatenate([knowledge.records, between.records]),
            drawn,
            list(draw_contexts(knowledge, between, repeats, seed)),
            design(knowledge, between, drawn),
            active,
            active * noise_in_update(plan, knowledge.others),
            seed,
        )

    def cost(self, measured: bool) -> float:
        """Return what one round costs, in whole federations; measured: whether paired signatures are."""
        contexts = sum(cost(self.plan, context.sets(0)) for context in self.contexts) if measured else 0.0
        return cost(self.plan, self.sets) + contexts


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a round says by one kind of signature.

    signatures: s, (R, q), centred
    residuals: e, (S, q), less their mean by party; update: x, (q,); means: the parties' mean updates less
    their mean, (K, q)
    """

    signatures: np.ndarray
    residuals: np.ndarray
    update: np.ndarray
    means: np.ndarray


def observe(
    experiment: Experiment, start: Weights, update: np.ndarray, t: int, kinds: Sequence[str], weights: int
) -> dict[str, Evidence]:
    """Simulate the round t that began at w_{t−1} = ``start`` and return the evidence by kind of signature.

    update: U, (p,); kinds: of 'paired', 'gradient'; weights: coordinates kept, at most
    """
    plan, pool, known = experiment.plan, experiment.pool, experiment.knowledge
    seed = rng.integer(experiment.seed, "round-decoding/party-rounds", round=t, bits=62)
    compress = _compression(experiment, start, len(update), weights, seed)
    updates = simulate(plan, start, pool, experiment.sets, seed, compress)
    received = compress(update[None])[0].astype(np.float64)
    found = {}
    for kind in kinds:
        if kind == "paired":
            other = rng.integer(seed, "round-decoding/contexts", bits=62)
            rows = paired(plan, start, pool, experiment.contexts, known.drawable, other, compress)
        else:
            rows = gradient(plan, start, pool, known, experiment.sets, seed, compress)
        found[kind] = _evidence(experiment, rows, updates, received, fitted=kind == "gradient")
    return found


def _compression(experiment: Experiment, start: Weights, size: int, weights: int, seed: int) -> Compress:
    """Return what is kept of updates of ``size`` coordinates: all, or a projection of the scaled ones."""
    if size <= weights:
        return lambda updates: updates
    scale = np.ones(size, np.float32)
    if not experiment.noise:
        first = experiment.knowledge.records.take(np.flatnonzero(experiment.knowledge.drawable)[:PILOTS])
        scale = scale_of(_gradients_at(experiment.plan, start, first, size))
    return Sketch.draw(scale, weights, seed)


def _gradients_at(plan: FederationPlan, start: Weights, records: Records, size: int) -> np.ndarray:
    """Return the records' gradients at w_{t−1} = ``start``, (n, p = ``size``) float32."""
    from attacks.rounds.signatures import mean_gradients

    return mean_gradients(plan, start, [(np.zeros(size, np.float32), 1.0)], records, lambda rows: rows)


def _evidence(
    experiment: Experiment, rows: np.ndarray, updates: np.ndarray, received: np.ndarray, fitted: bool
) -> Evidence:
    """Split the simulated updates into means, signatures and residuals; take what is expected out of U."""
    party, others, active = experiment.sets.party, experiment.knowledge.others, experiment.active
    presence, moves = experiment.presence.copy(), updates.astype(np.float64)
    means, average = np.empty((len(others), moves.shape[1])), np.zeros(presence.shape[1])
    for j, k in enumerate(others):
        own = party == k
        means[j], there = moves[own].mean(axis=0), presence[own].mean(axis=0)
        average += there
        moves[own] -= means[j]
        presence[own] -= there
    if fitted:
        rows = rows * np.float32(fit(rows, presence, moves.astype(np.float32)))
    residuals = moves - presence @ rows
    known = experiment.knowledge
    expected = means.sum(axis=0) + (known.prior * known.asked - average) @ rows
    return Evidence(rows, residuals, received - active * expected, means - means.mean(axis=0))


def products(experiment: Experiment, evidence: Evidence, rows: np.ndarray, targets: np.ndarray) -> Products:
    """Return the evidence's products, in scaled coordinates.

    rows, targets: of the records that are rows of the channel, and of those read without being one
    """
    signatures, drawable = evidence.signatures, experiment.knowledge.drawable
    scale = np.ones(signatures.shape[1], np.float32) if experiment.noise else scale_of(signatures[drawable])
    vectors = [signatures[rows], evidence.residuals.astype(np.float32)]
    if experiment.active < 1:
        vectors.append(evidence.means.astype(np.float32))
    scaled = np.concatenate(vectors) * scale
    return Products.of(scaled, evidence.update * scale, signatures[targets] * scale)


def intercepts(experiment: Experiment, kind: str, rows: np.ndarray, targets: np.ndarray) -> Intercepts:
    """Return how much of which mean was taken off each vector of `products`, and off each target."""
    of_records = _centres(experiment, kind)  # (R, G)
    # (S, K): a residual is less the mean of its party's.
    of_sets = (experiment.sets.party[:, None] == np.array(experiment.knowledge.others)).astype(float)
    groups, parties = of_records.shape[1], of_sets.shape[1]
    of_means = np.zeros((parties if experiment.active < 1 else 0, groups + parties))
    of_rows = [
        np.pad(of_records[rows], ((0, 0), (0, parties))),
        np.pad(of_sets, ((0, 0), (groups, 0))),
        of_means,
    ]
    return Intercepts(np.concatenate(of_rows), np.pad(of_records[targets], ((0, 0), (0, parties))))


def _centres(experiment: Experiment, kind: str) -> np.ndarray:
    """Return how much of the mean of each context, or population, was taken off each signature, (R, G)."""
    known = experiment.knowledge
    groups = [context.open for context in experiment.contexts]
    if kind == "gradient":
        groups = [known.belonging(*parties) for _, parties in known.populations()]
    centres = np.zeros((len(known), len(groups)))
    for number, group in enumerate(groups):
        centres[group, number] = 1
    return np.asarray(centres / np.maximum(centres.sum(axis=1, keepdims=True), 1))


def variances(experiment: Experiment, rows: np.ndarray, noise: float) -> Variances:
    """Return what varies along the rows: signatures of the records ``rows``, residuals, parties' means."""
    known, active, sets = experiment.knowledge, experiment.active, experiment.sets
    asked = known.asked[rows]
    effective = active * known.prior  # the probability that a record asked about is in the update
    bits = effective * (1 - effective) * asked
    # Rows that are a sample stand for the others' memberships as well.
    left_out = (known.asked.sum() - asked.sum()) / max(1, len(rows))
    sampled = np.full(len(rows), effective * (1 - effective) * left_out)
    for members, parties in known.populations():
        inside = np.isin(rows, members)
        inside = inside if inside.any() else np.ones(len(rows), bool)
        number = active * known.unknown(members, parties)
        # Their mean is estimated from these rows: its error counts once for each of them, all alike.
        sampled[inside] += number * (1 + number / inside.sum()) / inside.sum()
    counts = {k: int((sets.party == k).sum()) for k in known.others}
    of_parties = np.array([active / (counts[k] - 1) for k in sets.party.tolist()])
    together = np.zeros(0)
    if active < 1:
        many = len(known.others)
        together = np.full(many, active * (1 - active) * many / max(1, many - 1))
    nothing = np.zeros(len(of_parties))
    return Variances(
        np.concatenate([bits, nothing, together]),
        np.concatenate([sampled, of_parties, np.zeros(len(together))]),
        noise,
    )
