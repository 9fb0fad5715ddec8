"""Party-rounds: one simulated round of one party, from a global model that the adversary was sent.

Given w_{t−1} the parties train independently. What a round of a party would add to the next global model can
so be simulated party by party, by the very step that shadows take (`attacks.shadows`): optimizer, DP-SGD and
defences follow. A whole shadow federation costs rounds × parties of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from attacks.shadows.plan import FederationPlan
from attacks.views.settings import Weights
from fedsim.core.data.records import Records

MODULE_BLOCK = 4
"""Models other than stacks of linear layers that are trained together."""

Compress = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class MemberSets:
    """The records of B party-rounds.

    party: (B,) int; rows: (B, largest size) int, of a pool, −1 after a smaller party's
    number: (B,) int, of the random streams: party-rounds of one number train on the same places of their
        rows, in the same order, with the same noise
    """

    party: np.ndarray
    rows: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.party)


def simulate(
    plan: FederationPlan,
    start: Weights,
    pool: Records,
    sets: MemberSets,
    seed: int,
    compress: Compress = lambda updates: updates,
) -> np.ndarray:
    """Return n_k/N (w^k − w_{t−1}) of every set, (B, p) float32, in the order of the module's parameters.

    plan: of the whole federation; start: w_{t−1}
    compress: maps updates (b, p) to what is kept of them, (b, q)

    Raises:
        ValueError: a set has not the size of its party.
    """
    from fedsim.core.training.stacked.batches import single_thread

    sizes = (sets.rows >= 0).sum(axis=1)
    if (sizes != plan.sizes[sets.party]).any():
        raise ValueError(f"sets of {sizes.tolist()} records, of parties of {plan.sizes.tolist()}")
    result: np.ndarray | None = None
    with single_thread():
        for places, updates in _blocks(plan, start, pool, sets, seed):
            share = plan.sizes[sets.party[places]] / plan.sizes.sum()
            kept = compress(updates * share[:, None].astype(np.float32))
            if result is None:
                result = np.empty((len(sets), kept.shape[1]), np.float32)
            result[places] = kept
    if result is None:
        raise ValueError("there are no sets to simulate")
    return result


def cost(plan: FederationPlan, sets: MemberSets) -> float:
    """Return what the sets' training costs in whole federations: records trained on, over a federation's."""
    federation = plan.rounds * plan.sizes.sum() * plan.participants / len(plan.parties)
    return float((sets.rows >= 0).sum() / federation)


def trained_alone(plan: FederationPlan, party: int) -> FederationPlan:
    """Return the plan of a federation of this party alone, of one round: its model is the party's answer."""
    proximal = plan.strategy == "fedprox"
    return replace(
        plan,
        rounds=1,
        parties=(plan.parties[party],),
        participants=1,
        strategy="fedprox" if proximal else "fedavg",
        options=plan.options if proximal else {},
        ascent=None,
    )


def _blocks(
    plan: FederationPlan, start: Weights, pool: Records, sets: MemberSets, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places among the sets and their updates w^k − w_{t−1}, (b, p) float32, block by block."""
    from attacks.shadows.simulate import quick_block
    from fedsim.core.models import zoo
    from fedsim.core.training.stacked.stack import stack_of

    module = zoo.build(plan.model, plan.input_shape, plan.classes)
    stack = stack_of(module, plan.input_shape, plan.classes)
    drops = any(party.defence.dropout for party in plan.parties)
    # Of a module's hidden units only the module itself knows: it drops them by torch's own stream.
    stack = None if stack is not None and drops and not stack.hidden_widths else stack
    names = [name for name, _ in module.named_parameters()]
    before = np.concatenate([np.ravel(start[name]) for name in names]).astype(np.float32)
    # Stacked layers round alike in every block; of other modules a block must not depend on the machine.
    together = stack if stack is not None and stack.rounds_alike else None
    for k, places in _by_training(plan, sets.party):
        alone = trained_alone(plan, k)
        size = MODULE_BLOCK if together is None else quick_block(alone, together)
        for some in np.split(places, range(size, len(places), size)):
            answers = _train(alone, stack, start, pool, sets, some, seed)
            flat = np.concatenate([answers[name].reshape(len(some), -1) for name in names], axis=1)
            yield some, flat - before


def _by_training(plan: FederationPlan, party: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a party, and the places of all sets whose party trains as it does."""
    left = sorted(set(party.tolist()))
    while left:
        alike = [k for k in left if plan.parties[k] == plan.parties[left[0]]]
        yield left[0], np.flatnonzero(np.isin(party, alike))
        left = [k for k in left if k not in alike]


def _train(
    alone: FederationPlan,
    stack: object,
    start: Weights,
    pool: Records,
    sets: MemberSets,
    some: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the answers of these sets' parties, (b, …) by name."""
    from attacks.shadows.block import train_block
    from attacks.shadows.plain import train_one
    from attacks.shadows.schedule import Streams

    width = alone.parties[0].size
    members = sets.rows[some, None, :width]
    streams = [Streams(seed, 0, int(number)) for number in sets.number[some]]
    if stack is None:
        nothing = pool.take(np.arange(0))
        person = np.arange(len(pool))  # sets are of records: each is taken for its person's only one
        found = [
            train_one(alone, start, pool, rows, nothing, (), stream, _ignore, person=person)
            for rows, stream in zip(members, streams, strict=True)
        ]
        return {name: np.stack([each[name].numpy() for each in found]) for name in found[0]}
    records = stack.pool(pool)  # type: ignore[attr-defined]
    answers = train_block(alone, stack, start, records, members, records, (), streams, _ignore)  # type: ignore[arg-type]
    return {name: array.numpy() for name, array in answers.items()}


def _ignore(t: int, logits: object, weights: object) -> None:
    """Observe nothing: of a party-round only the answer counts."""
