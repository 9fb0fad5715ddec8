"""From what a participant saw to the shadow federations that it simulates.

It repeats the federation with the public settings, from the w_0 that it was sent, with its own training
records where they were and everyone else's drawn from the records that it owns (DESIGN §9). What it
owns decides what it can learn:

population   the candidates and further records of the same parties: each is in about half of the shadows
disjoint     records of the same parties of which none is a candidate: candidates are in no shadow
own          nothing but its own records: candidates are in no shadow
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from attacks import deviation
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.shadows import budget, interpolation, members, plan
from attacks.shadows.members import Membership
from attacks.shadows.plan import FederationPlan, PartyTraining
from attacks.shadows.simulate import Laboratory, ShadowRequest, Shadows, flat_weights, train_shadows
from attacks.shadows.simulate import path_of as shadow_path
from attacks.signals import outputs
from attacks.views.participant import ParticipantView
from fedsim.core import rng
from fedsim.core.data.records import Pool, Records
from fedsim.core.errors import InputError
from fedsim.core.scenario.protection import NO_DEFENCE

EARLY = 2
"""The first rounds, of which there are more shadows: w_2 shows a membership best, having moved furthest of
the models that are still nearly linear in it."""

OBSERVED_ROUNDS = 4
"""Rounds at which shadows are looked at: spread over the last three quarters, w_T last."""

VARIETY, MOST_UNKNOWN = 4, 2048
"""Records that stand for unknown members: for each that a party holds, up to about this many a party."""


def simulate(
    view: ParticipantView,
    candidates: Records,
    seed: int,
    game: int = 0,
    laboratory: Laboratory | None = None,
    *,
    early: bool = False,
) -> SignalMatrix:
    """Simulate the shadows of ``view`` and return their signals beside the target's.

    The columns are the candidates, in order, followed by the other records from which shadows were drawn.

    early: more shadows (`budget.early`) of the first rounds alone; the first of them are the same ones

    Raises:
        InputError: the strategy cannot be simulated, or the adversary owns too few records.
    """
    laboratory = laboratory or Laboratory()
    rounds = early_rounds(view) if early else observed_rounds(view)
    count = budget.early(view.assumptions, _parameters(view)) if early else view.assumptions.shadows
    candidate_pool = Pool(candidates, _party_of(view, len(candidates)), _person_of(view, len(candidates)))
    drawn_from, fixed = _records_to_draw(view, candidate_pool)
    drawn_from, spare = _with_unknown(view, drawn_from, fixed, seed, game)
    columns = Records.concatenate([candidates, *_beside(view)])
    settings = federation_plan(view, rounds[-1])
    person = drawn_from.person if settings.by_person else None
    if settings.by_person and person is None:
        raise InputError(
            "shadows follow a DP-SGD whose unit is a person only where data.person names persons"
        )
    membership = members.draw_members(
        count,
        view.settings.sizes,
        drawn_from.party,
        fixed=fixed,
        seed=seed,
        game=game,
        spare=spare,
        person=person,
    )
    request = ShadowRequest(
        plan=settings.resized(membership.sizes),
        initial=dict(view.initial),
        pool=drawn_from.records,
        membership=membership,
        signal_records=columns,
        rounds=tuple(rounds),
        seed=seed,
        game=game,
        logit_rounds=tuple(rounds[-1:]) if view.settings.classes > 2 and not early else (),
        weight_rounds=tuple(rounds[-1:]) if count <= budget.affordable(_parameters(view)) else (),
        raised=view.raised,
        person=person,
    )
    memory = int(view.assumptions.memory * 2**30)
    shadows = train_shadows(request, dataclasses.replace(laboratory, max_bytes=memory))
    inside = _inside(view, membership, len(candidates), len(columns))
    return _matrix(view, columns, shadows, inside, _owned(membership.inside, inside, fixed))


def path_of(view: ParticipantView) -> str:
    """Return how the view's shadows are trained, as `simulate.path_of`; 'none' where they cannot be."""
    try:
        return shadow_path(federation_plan(view, view.final_round))
    except InputError:
        return "none"


def early_rounds(view: ParticipantView) -> list[int]:
    """Return the rounds up to `EARLY` that the adversary saw, else the first that it saw."""
    seen = view.trained_rounds
    return [t for t in seen if t <= EARLY] or seen[:1]


def observed_rounds(view: ParticipantView) -> list[int]:
    """Return the rounds at which target and shadows are compared, of those that the adversary saw.

    Of an ascending one those right after its ascents, and the last.
    """
    last = view.final_round
    looked_at = (*view.ascents, last) if view.ascents else view.trained_rounds
    seen = np.array([t for t in view.trained_rounds if t in looked_at])
    wanted = np.linspace(last / OBSERVED_ROUNDS, last, OBSERVED_ROUNDS)
    nearest = [int(seen[np.abs(seen - t).argmin()]) for t in wanted]
    return sorted(set(nearest))


def federation_plan(view: ParticipantView, rounds: int) -> FederationPlan:
    """Return the public settings as a plan of the first ``rounds`` rounds, which shadows repeat."""
    settings = view.settings
    # A run of an earlier version, or a view made by hand, may not say what the parties do beside DP-SGD.
    defences = settings.defences or (None,) * settings.parties
    parties = zip(settings.sizes, settings.privacy, defences, strict=True)
    return FederationPlan(
        model=settings.model,
        input_shape=tuple(settings.input_shape),
        classes=settings.classes,
        rounds=rounds,
        training=settings.training,
        parties=tuple(PartyTraining(n, dp, defence or NO_DEFENCE) for n, dp, defence in parties),
        participants=settings.participants,
        strategy=settings.strategy,
        options=settings.options,
        ascent=None if view.raised is None else _ascent(view, rounds),
        private_training=settings.training.under_dp(),
    )


def _ascent(view: ParticipantView, rounds: int) -> plan.Ascent:
    own, settings = view.settings.own, view.assumptions
    every = deviation.ascent_rounds(settings, view.settings.rounds)
    past = tuple(t for t in every if t <= rounds)
    return plan.Ascent(own, past, settings.ascent_rate, settings.ascent_limit)


def _flat_weights(view: ParticipantView, t: int) -> np.ndarray:
    """Return w_t in the module's own order of parameters; on disk they are in alphabetical order."""
    from fedsim.core.models import weights

    return flat_weights(weights.weights_of(view.module(view.models[t])))


def _parameters(view: ParticipantView) -> int:
    return sum(array.size for array in view.final_model.values())


def _party_of(view: ParticipantView, candidates: int) -> np.ndarray:
    known = view.candidate_party
    return np.full(candidates, -1) if known is None or len(known) != candidates else known


def _person_of(view: ParticipantView, candidates: int) -> np.ndarray | None:
    known = view.candidate_person
    return known if known is not None and len(known) == candidates else None


def _beside(view: ParticipantView) -> list[Records]:
    """Return the records besides the candidates that shadows are drawn from, and that are signals as well."""
    if view.assumptions.auxiliary == "own":
        return [view.own_heldout]
    owned = view.auxiliary
    return [owned.records] if owned is not None and len(owned) else []


def _records_to_draw(view: ParticipantView, candidate_pool: Pool) -> tuple[Pool, dict[int, np.ndarray]]:
    """Return the pool from which shadows are drawn, and party → the rows that it is known to train on.

    These come last: the adversary's own members and its poison, where it poisons; in a coalition those of all
    its parties. Under 'own' all own records are drawn from as well, to stand for the others'.
    """
    owned = view.auxiliary or candidate_pool.first(0)
    parts = {"population": [candidate_pool, owned], "disjoint": [owned]}.get(view.assumptions.auxiliary)
    if parts is None:
        sides = (view.own_heldout, view.own_heldout_person), (view.own_train, view.own_train_person)
        parts = [Pool(records, np.full(len(records), -1), person) for records, person in sides]
    trained_on = _trained_on(view)
    pool, trainer = Pool.concatenate([*parts, trained_on]), trained_on.party
    rows = np.arange(len(pool) - len(trained_on), len(pool))
    return pool, {int(k): rows[trainer == k] for k in np.unique(trainer)}


def _trained_on(view: ParticipantView) -> Pool:
    """Return what the adversary, or its coalition, trains on; a poisoned copy is a person of its own."""
    own = np.full(len(view.own_train), view.settings.own) if view.own_party is None else view.own_party
    trained_on = Pool(view.own_train, own, view.own_train_person)
    if view.poison is None:
        return trained_on
    nobody = None if view.own_train_person is None else -1 - np.arange(len(view.poison))
    return Pool.concatenate(
        [trained_on, Pool(view.poison, np.full(len(view.poison), view.settings.own), nobody)]
    )


def _with_unknown(
    view: ParticipantView, pool: Pool, fixed: dict[int, np.ndarray], seed: int, game: int
) -> tuple[Pool, dict[int, np.ndarray] | None]:
    """Return the pool with what stands for members that are not owned, and party → the rows of these.

    They lie between two owned records of the same label, of the party where it is known. Where the adversary
    owns all that may be members there are none of them. Each is a person of its own.
    """
    if view.assumptions.ladder[0] == "all":
        return pool, None
    stream = rng.generator(seed, "shadows/unknown members", game=game)
    free = np.setdiff1d(np.arange(len(pool)), np.concatenate([*fixed.values(), np.empty(0, int)]))
    parts, spare, end = [pool], {}, len(pool)
    for k, size in enumerate(view.settings.sizes):
        rows = free[(pool.party[free] == k) | (pool.party[free] < 0)]
        if k in fixed or not len(rows):
            continue
        count = min(VARIETY * size, max(size, MOST_UNKNOWN))
        parents = interpolation.pairs(pool.records.labels, rows, count, stream)
        records = interpolation.between(pool.records, parents, stream.random(count))
        places = np.arange(end, end + count)
        nobody = None if pool.person is None else pool.person.min() - 1 - places
        parts.append(Pool(records, np.full(count, k), nobody))
        spare[k] = places
        end += count
    return Pool.concatenate(parts), spare


def _inside(view: ParticipantView, membership: Membership, candidates: int, columns: int) -> np.ndarray:
    """Return the party of each column in each shadow, (S, columns) int16; −1 where it is in none."""
    inside = np.full((len(membership), columns), -1, dtype=np.int16)
    drawn = membership.inside
    if view.assumptions.auxiliary == "population":
        inside[:] = drawn[:, :columns]
    else:
        inside[:, candidates:] = drawn[:, : columns - candidates]
    return inside


def _owned(drawn: np.ndarray, inside: np.ndarray, fixed: Mapping[int, np.ndarray]) -> float:
    """Return the share of the members of other parties than ``fixed`` who are columns, over all shadows.

    drawn: (S, records) int, the party of every record of the pool; inside: (S, columns) int; −1 is none
    """
    others, among = (int((~np.isin(parties, [-1, *fixed])).sum()) for parties in (drawn, inside))
    return among / others if others else 1.0


def _matrix(
    view: ParticipantView, columns: Records, shadows: Shadows, inside: np.ndarray, owned: float
) -> SignalMatrix:
    logits = [view.logits(t, columns) for t in shadows.rounds]
    target = np.stack([outputs.scaled_logit(answers, columns.labels) for answers in logits])
    beside = sum(len(records) for records in _beside(view))
    known = np.full(beside, -1)
    if view.auxiliary is not None and len(view.auxiliary) == beside:
        known = view.auxiliary.party
    party = np.concatenate([_party_of(view, len(columns) - beside), known])
    return SignalMatrix(
        target=target.astype(np.float32),
        shadows=shadows.phi,
        inside=inside,
        rounds=np.array(shadows.rounds),
        labels=columns.labels,
        party=party,
        target_logits=None if shadows.logits is None else logits[-1].astype(np.float32),
        shadow_logits=None if shadows.logits is None else shadows.logits[:, -1],
        target_weights=None if shadows.weights is None else _flat_weights(view, shadows.rounds[-1])[None],
        shadow_weights=shadows.weights,
        features=columns.features,
        owned=owned,
    )
