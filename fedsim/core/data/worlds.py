"""Worlds: what an adversary owns beside its own records, and whom it is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, eq=False)
class World:
    """What an adversary owns of a game's records.

    asked: (m,) int64, the candidates whose membership is asked here, as rows of all candidates, increasing
    owned: (k,) int64, what it owns beside these, as rows of the game's auxiliary records
    nobodys: (j,) int64, candidates that are asked about elsewhere, and that here it owns and knows to be held
        out, to simulate with
    """

    asked: np.ndarray
    owned: np.ndarray
    nobodys: np.ndarray


def arrays(worlds: Mapping[str, World]) -> dict[str, np.ndarray]:
    """Return worlds by name as named arrays, to be written or sent."""
    return {
        f"{name}/{field.name}": getattr(world, field.name)
        for name, world in worlds.items()
        for field in fields(World)
    }


def from_arrays(named: Mapping[str, np.ndarray]) -> dict[str, World]:
    """Undo `arrays`.

    Raises:
        KeyError: an array is missing.
    """
    names = dict.fromkeys(key.partition("/")[0] for key in named)
    parts = [field.name for field in fields(World)]
    return {name: World(*(named[f"{name}/{part}"] for part in parts)) for name in names}
