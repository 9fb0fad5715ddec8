"""A participant's view in one of the worlds that a run compares: what it owns there, and nothing more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.views.participant import ParticipantView
from fedsim.core.data import worlds
from fedsim.core.data.records import Pool, Records
from fedsim.core.data.worlds import World
from fedsim.core.errors import InputError
from fedsim.core.files import read_arrays, write_arrays
from fedsim.core.scenario.adversary import OWNED_AS

FILE = "worlds.safetensors"


def record_worlds(folder: Path, named: dict[str, World]) -> None:
    """Write what the adversary owns in each world beside what it saw."""
    write_arrays(folder / FILE, worlds.arrays(named))


def load_worlds(folder: Path) -> dict[str, World]:
    """Read what `record_worlds` wrote.

    Raises:
        InputError: the file is missing or corrupt.
    """
    try:
        return worlds.from_arrays(read_arrays(folder / FILE))
    except KeyError as error:
        raise InputError(f"cannot read {folder / FILE}: it has no array {error}") from error


def in_world(view: ParticipantView, candidates: Pool, name: str, world: World) -> ParticipantView:
    """Return the view of one who owns what the world says, to be asked about its candidates alone.

    candidates: all of the game's
    """
    beside = view.auxiliary or Pool(candidates.records.take(np.arange(0)), np.empty(0, np.int64))
    owned = [Pool(beside.records.take(world.owned), beside.party[world.owned])]
    owned.append(Pool(candidates.records.take(world.nobodys), candidates.party[world.nobodys]))
    pool = Pool(
        Records.concatenate([part.records for part in owned]), np.concatenate([part.party for part in owned])
    )
    assumed = view.assumptions.model_copy(update={"auxiliary": OWNED_AS[name], "worlds": [name]})
    return replace(
        view,
        auxiliary=pool,
        candidate_party=candidates.party[world.asked],
        assumptions=assumed,
        _kept={},
    )
