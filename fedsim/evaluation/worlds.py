"""Which records the adversary owns in each world of a game; the draw needs the truth, what it gives has none.

Worlds are nested, so that they can be compared on the same candidates: those asked about in 'few' are asked
about in 'half', these in 'all', and in 'none' too. In each the members' share is that of the whole game.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedsim.core.data.worlds import World
from fedsim.core.errors import InputError
from fedsim.core.scenario.adversary import WorldName

SHARES: dict[WorldName, float] = {"all": 1.0, "half": 0.5, "few": 0.1}
"""The share of the others' records that are owned, as far as the game has them."""

MIN_ASKED = 1
"""Members, and non-members, that a world asks about at least."""


def draw_worlds(
    names: Sequence[WorldName],
    candidates: pd.DataFrame,
    auxiliary: pd.DataFrame,
    stream: np.random.Generator,
    *,
    disjoint: bool = False,
) -> dict[str, World]:
    """Return the worlds by name.

    candidates, auxiliary: party and member, a row a record; who is a member decides what is drawn alone
    disjoint: whether ``auxiliary`` is none of the parties' training, so that 'none' owns all of it

    Raises:
        InputError: a world would ask about no member, or no other.
    """
    n, both = len(candidates), pd.concat([candidates, auxiliary], ignore_index=True)
    member = both["member"].to_numpy(dtype=bool)
    beside = np.arange(len(both)) >= n
    order = _spread(both.assign(beside=beside), stream)
    order = order[np.argsort(beside[order], kind="stable")]  # whoever is asked about is owned first
    worlds: dict[str, World] = {name: _draw(name, order, member, n, disjoint) for name in names}
    for name, world in worlds.items():
        inside = int(member[world.asked].sum())
        if min(inside, len(world.asked) - inside) < MIN_ASKED:
            raise InputError(
                f"adversary.worlds: world '{name}' asks about {inside} members and "
                f"{len(world.asked) - inside} others, of {n} candidates; each needs {MIN_ASKED}: "
                'leave the world out, such as with adversary.worlds = ["all"]'
            )
    return worlds


def _draw(name: WorldName, order: np.ndarray, member: np.ndarray, n: int, disjoint: bool) -> World:
    everyone, nothing = np.arange(n), np.empty(0, dtype=np.int64)
    if name == "own":
        return World(everyone, nothing, nothing)
    if name == "none" and disjoint:
        return World(everyone, np.arange(n, len(order)) - n, nothing)
    if name == "none":
        heldout = order[~member[order]]
        kept = heldout[len(heldout) - len(heldout) // 2 :]
        kept = np.setdiff1d(kept, order[: round(SHARES["half"] * len(order))])
        nobodys = np.sort(kept[kept < n])
        return World(np.setdiff1d(everyone, nobodys), np.sort(kept[kept >= n]) - n, nobodys)
    owned = order[: round(SHARES[name] * len(order))]
    return World(np.sort(owned[owned < n]), np.sort(owned[owned >= n]) - n, nothing)


def _spread(records: pd.DataFrame, stream: np.random.Generator) -> np.ndarray:
    """Return a random order of which every beginning has about the same share of each party's two sides."""
    place = np.empty(len(records))
    for _, rows in records.groupby(["beside", "party", "member"], sort=True).indices.items():
        place[stream.permutation(rows)] = (np.arange(len(rows)) + stream.random()) / len(rows)
    return np.argsort(place, kind="stable")
