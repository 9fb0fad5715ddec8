"""The membership game (DESIGN §6), and the only part of the data that knows the truth.

Attacks and clients never import this module; what they may see is a party's own folder (`store`) and the
candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core import rng
from fedsim.core.data.encode import Encoded
from fedsim.core.data.parties import units_of
from fedsim.core.data.records import PersonRecords, Pool
from fedsim.core.data.store import PartyRecords
from fedsim.core.data.worlds import World
from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import read_table, write_table
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.evaluation.worlds import draw_worlds

MIN_PER_SIDE = 2
TRUTH = "truth.parquet"


@dataclass(frozen=True)
class Game:
    """One draw of which records are members.

    candidates: the records whose membership the adversary is asked to infer, shuffled.
    auxiliary: records that the adversary owns beside these and its own.
    worlds: how much of them it owns, by world.
    truth: one row a candidate: candidate (0 … n-1), record (its row in the encoded table), party, member
        (bool), label (class index).
    persons: all records of the candidates' persons, None where the table names none; whoever is a member is
        one with all of her records.
    """

    parties: dict[str, PartyRecords]
    candidates: Pool
    auxiliary: Pool
    truth: pd.DataFrame
    worlds: dict[str, World]
    persons: PersonRecords | None = None


def draw_game(
    encoded: Encoded,
    rows: Mapping[str, np.ndarray],
    *,
    seed: int,
    game: int,
    member_share: float,
    adversary: str,
    settings: AdversarySettings,
) -> Game:
    """Draw members and held-out records of each party, the candidates, and what the adversary owns.

    rows: party → (n_k,) row indices of ``encoded``, from `deal`.
    member_share: share of a party's records that it trains on. A person with several records is on one side
        with all of them, in all parties, so that the share is met to within one person.

    Raises:
        InputError: ``adversary`` is no party, or a party is left with fewer than two records on a side.
    """
    member = draw_members(encoded, rows, seed=seed, game=game, share=member_share)
    because = f" with parties.member_share = {member_share:g}"
    return game_of(
        encoded, rows, member, seed=seed, game=game, adversary=adversary, settings=settings, because=because
    )


def game_of(
    encoded: Encoded,
    rows: Mapping[str, np.ndarray],
    member: np.ndarray,
    *,
    seed: int,
    game: int,
    adversary: str,
    settings: AdversarySettings,
    because: str = "",
) -> Game:
    """Return the game in which ``member`` says who is trained on: candidates, and what the adversary owns.

    rows: party → (n_k,) row indices of ``encoded``. member: (n,) bool. because: ends the sentence that
        refuses a side of too few records.
    settings.candidates: at most this many, half of them members as nearly as there are enough. Of a person
        with several records at most one is a candidate: more would be no independent evidence.
    settings.coalition: parties whose records are no candidates, whoever observes.
    A canary is trained on where its person is a member; it is no candidate, and held out for nobody: what is
    planted to be memorised is kept apart from what is measured on ordinary records.

    Raises:
        InputError: ``adversary`` is no party, or a party is left with fewer than two records on a side.
    """
    if adversary not in rows:
        raise InputError(f"adversary.party = '{adversary}': no such party{suggestion(adversary, rows)}")
    parties = {name: _sides(encoded, name, own_rows, member, because) for name, own_rows in rows.items()}
    others = _others(encoded, rows, member, adversary)
    stream = rng.generator(seed, "auxiliary records", game=game)
    kept_back = _keep_back(others, settings, stream)
    known = np.flatnonzero(others["party"].isin(settings.coalition))  # to an observer who is to be compared
    never = np.union1d(kept_back, known)
    if encoded.person is not None:
        units = units_of(encoded)[0][others["record"].to_numpy(dtype=np.int64)]
        stream = rng.generator(seed, "candidates/persons", game=game)
        never = np.union1d(never, _further(units, never, stream))
    stream = rng.generator(seed, "candidates", game=game)
    chosen = _choose(others["member"].to_numpy(dtype=bool), never, settings.candidates, stream)
    owned = kept_back if settings.auxiliary == "disjoint" else _unchosen(others, chosen, settings, stream)
    truth = others.iloc[chosen].reset_index(drop=True)
    truth.insert(0, "candidate", np.arange(len(truth)))
    known_parties = list(rows) if settings.knows_party else []
    stream = rng.generator(seed, "worlds", game=game)
    beside, disjoint = others.iloc[owned], settings.auxiliary == "disjoint"
    worlds = draw_worlds(settings.ladder, truth, beside, stream, disjoint=disjoint)
    return Game(
        parties,
        _pool(encoded, truth, known_parties),
        _pool(encoded, beside, known_parties),
        truth,
        worlds,
        _belongings(encoded, others[~others["party"].isin(settings.coalition)], truth),
    )


def _belongings(encoded: Encoded, others: pd.DataFrame, truth: pd.DataFrame) -> PersonRecords | None:
    """Return all records of the candidates' persons among ``others``, candidate after candidate."""
    if encoded.person is None:
        return None
    units = units_of(encoded)[0]
    candidate_of = np.full(units.max() + 1, -1)
    candidate_of[units[truth["record"].to_numpy(dtype=np.int64)]] = truth["candidate"]
    rows = others["record"].to_numpy(dtype=np.int64)
    owner = candidate_of[units[rows]]
    order = np.argsort(owner, kind="stable")[int((owner < 0).sum()) :]
    return PersonRecords(encoded.records(rows[order]), owner[order].astype(np.int64))


def _sides(
    encoded: Encoded, name: str, own_rows: np.ndarray, member: np.ndarray, because: str
) -> PartyRecords:
    train, heldout = own_rows[member[own_rows]], own_rows[~member[own_rows]]
    if encoded.secret is not None:
        heldout = heldout[encoded.secret[heldout] == ""]
    if min(len(train), len(heldout)) < MIN_PER_SIDE:
        raise InputError(
            f"{encoded.name}: party '{name}' has {len(train)} training and {len(heldout)} held-out "
            f"records{because}; each side needs {MIN_PER_SIDE}"
        )
    if encoded.person is None:
        return PartyRecords(name, encoded.records(train), encoded.records(heldout))
    units = units_of(encoded)[0].astype(np.int64)
    return PartyRecords(name, encoded.records(train), encoded.records(heldout), units[train], units[heldout])


def _keep_back(others: pd.DataFrame, settings: AdversarySettings, stream: np.random.Generator) -> np.ndarray:
    """Return the rows of ``others`` that a 'disjoint' adversary owns: held out, and never candidates."""
    if settings.auxiliary != "disjoint":
        return np.empty(0, dtype=np.int64)
    heldout = np.flatnonzero(~others["member"].to_numpy(dtype=bool))
    most = len(heldout) - MIN_PER_SIDE
    size = len(heldout) // 2 if settings.auxiliary_size is None else settings.auxiliary_size
    if not 2 <= size <= most:
        raise InputError(
            f"adversary.auxiliary_size = {size}: 'disjoint' records are held-out ones that are no "
            f"candidates; with {len(heldout)} held-out records it can be 2 to {most}"
        )
    return stream.permutation(heldout)[:size]


def _further(units: np.ndarray, never: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Return the rows that are left of each unit when one, drawn at random, is taken; ``never`` aside.

    units: (n,) int, the person of each row
    """
    order = stream.permutation(np.setdiff1d(np.arange(len(units)), never))
    _, first = np.unique(units[order], return_index=True)
    return np.delete(order, first)


def _unchosen(
    others: pd.DataFrame, chosen: np.ndarray, settings: AdversarySettings, stream: np.random.Generator
) -> np.ndarray:
    """Return the rows that a 'population' adversary owns beside the candidates; none where it is 'own'."""
    rest = np.setdiff1d(np.arange(len(others)), chosen)
    size = len(rest) if settings.auxiliary_size is None else settings.auxiliary_size
    return stream.permutation(rest)[: size if settings.auxiliary == "population" else 0]


def _pool(encoded: Encoded, rows: pd.DataFrame, known: list[str]) -> Pool:
    """Return the records of ``rows``; their party is the index in ``known``, -1 where nothing is known.

    Whose a record is is as well known as the record: it tells nothing of who is a member.
    """
    index = {name: k for k, name in enumerate(known)}
    party = np.array([index.get(name, -1) for name in rows["party"]], dtype=np.int64)
    record = rows["record"].to_numpy(dtype=np.int64)
    person = None if encoded.person is None else units_of(encoded)[0][record].astype(np.int64)
    return Pool(encoded.records(record), party, person)


def draw_members(
    encoded: Encoded, rows: Mapping[str, np.ndarray], *, seed: int, game: int, share: float
) -> np.ndarray:
    """Return a (n,) mask of the members; every record of a person has the same value.

    Parties draw one after the other in the order of their names; a person that an earlier party has drawn
    keeps its side.
    """
    units, first = units_of(encoded)
    side = np.full(len(first), -1)  # of a unit: 1 member, 0 held out, -1 not drawn yet
    for party in sorted(rows):
        stream = rng.generator(seed, "membership", game=game, party=party)
        _draw_sides(side, np.unique(units[rows[party]]), share, stream)
    return side[units] == 1


def _draw_sides(side: np.ndarray, own_units: np.ndarray, share: float, stream: np.random.Generator) -> None:
    """Draw sides, in place, for those in ``own_units`` who have none yet: a ``share`` of them are members.

    Persons are counted, not records. To go on until the records are enough would end the draw more often
    within a person of many than of few, and how many records she has would tell on which side she is.
    """
    order = stream.permutation(own_units)
    order = order[side[order] < 0]
    side[order] = np.arange(len(order)) < round(share * len(order))


def _others(
    encoded: Encoded, rows: Mapping[str, np.ndarray], member: np.ndarray, adversary: str
) -> pd.DataFrame:
    others = [name for name in rows if name != adversary]
    record = np.concatenate([rows[name] for name in others])
    party = np.repeat(np.array(others, dtype=object), [len(rows[name]) for name in others])
    if encoded.secret is not None:  # a canary is nobody's candidate
        ordinary = encoded.secret[record] == ""
        record, party = record[ordinary], party[ordinary]
    return pd.DataFrame(
        {"record": record, "party": party, "member": member[record], "label": encoded.labels[record]}
    )


def _choose(
    member: np.ndarray, never: np.ndarray, most: int | None, stream: np.random.Generator
) -> np.ndarray:
    """Return shuffled indices of at most ``most`` candidates, the two sides as equal as can be."""
    order = stream.permutation(len(member))
    order = order[~np.isin(order, never)]
    if most is None or most >= len(order):
        return order
    inside, outside = order[member[order]], order[~member[order]]
    from_inside = min(len(inside), max(most // 2, most - len(outside)))
    return stream.permutation(np.concatenate([inside[:from_inside], outside[: most - from_inside]]))


def write_truth(folder: Path, games: Sequence[Game]) -> None:
    """Write the truth of all games into the run's ``folder``; only the evaluation reads it again."""
    truth = pd.concat([game.truth.assign(game=k) for k, game in enumerate(games)], ignore_index=True)
    write_table(folder / TRUTH, truth, private=True)


def read_truth(folder: Path) -> pd.DataFrame:
    """Return what `write_truth` wrote: game, candidate, record, party, member, label.

    Raises:
        InputError: the file is missing or corrupt.
    """
    if not (folder / TRUTH).exists():
        raise InputError(
            f"{folder / TRUTH} is missing; where `fedsim runs prune` removed it, run the scenario again"
        )
    return read_table(folder / TRUTH)
