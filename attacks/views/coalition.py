"""What several parties saw that share their records and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attacks.views.observations import read_persons, read_records, read_rounds
from attacks.views.participant import ParticipantView
from attacks.views.settings import Weights
from fedsim.core.data.records import Pool, Records


@dataclass(frozen=True, eq=False)
class Accomplice:
    """What another party shares with the adversary: its records, and round → its answer.

    train_person, heldout_person: whose each record is, None where nobody is named
    """

    partition: int
    train: Records
    heldout: Records
    replies: dict[int, Weights]
    train_person: np.ndarray | None = None
    heldout_person: np.ndarray | None = None


def unite(view: ParticipantView, accomplices: Sequence[Accomplice]) -> ParticipantView:
    """Return the coalition's view: ``view`` as if its owner had all of its accomplices' records and answers.

    The united 'own reply' of round t is such that the owner's share of it, which `others_update` takes out,
    is Σ_k share_k · (w^k_t − w_{t−1}) over the coalition's parties k.
    """
    settings = view.settings
    replies = {settings.own: view.own_replies}
    replies |= {accomplice.partition: accomplice.replies for accomplice in accomplices}
    factor = {k: replace(settings, own=k).own_share / settings.own_share for k in replies}
    united: dict[int, Weights] = {}
    for t in sorted({t for of_party in replies.values() for t in of_party if t - 1 in view.models}):
        before = {name: array.astype(np.float64) for name, array in view.models[t - 1].items()}
        answers = [(factor[k], of_party[t]) for k, of_party in replies.items() if t in of_party]
        united[t] = {
            name: start + sum(weight * (answer[name] - start) for weight, answer in answers)
            for name, start in before.items()
        }
    heldouts = [view.own_heldout, *(accomplice.heldout for accomplice in accomplices)]
    trains = [view.own_train, *(accomplice.train for accomplice in accomplices)]
    parties = [settings.own, *(accomplice.partition for accomplice in accomplices)]
    return replace(
        view,
        own_replies=united,
        own_train=Records.concatenate(trains),
        own_heldout=Records.concatenate(heldouts),
        own_party=np.repeat(parties, [len(train) for train in trains]),
        own_train_person=_joined([view.own_train_person, *(each.train_person for each in accomplices)]),
        own_heldout_person=_joined([view.own_heldout_person, *(each.heldout_person for each in accomplices)]),
        auxiliary=None if view.auxiliary is None else _beside(view.auxiliary, accomplices),
        _kept={},
    )


def _joined(persons: Sequence[np.ndarray | None]) -> np.ndarray | None:
    named = [each for each in persons if each is not None]
    return np.concatenate(named) if len(named) == len(persons) else None


def _beside(auxiliary: Pool, accomplices: Sequence[Accomplice]) -> Pool:
    """Return the auxiliary records without the accomplices': it is known whose those are."""
    sides = [side for accomplice in accomplices for side in (accomplice.train, accomplice.heldout)]
    known = {key for side in sides for key in _keys(side)}
    open_rows = np.array([key not in known for key in _keys(auxiliary.records)], dtype=bool)
    return auxiliary.take(open_rows)


def _keys(records: Records) -> list[bytes]:
    return [
        x.tobytes() + bytes(str(y), "ascii") for x, y in zip(records.features, records.labels, strict=True)
    ]


def load_accomplice(folder: Path, partition: int) -> Accomplice:
    """Read what party ``partition`` shared in ``folder``.

    Raises:
        InputError: a file is missing or corrupt.
    """
    own = folder / "own.safetensors"
    replies = read_rounds(folder, "reply")
    train, heldout = read_records(own, "train_"), read_records(own, "heldout_")
    return Accomplice(partition, train, heldout, replies, *read_persons(own))
