"""A participant's view in one of the worlds that a run compares: what it owns there, and nothing more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from attacks.views.participant import ParticipantView
from fedsim.core.data import worlds
from fedsim.core.data.records import Pool
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
    beside = view.auxiliary or candidates.first(0)
    pool = Pool.concatenate([beside.take(world.owned), candidates.take(world.nobodys)])
    assumed = view.assumptions.model_copy(update={"auxiliary": OWNED_AS[name], "worlds": [name]})
    return replace(
        view,
        auxiliary=pool,
        candidate_party=candidates.party[world.asked],
        candidate_person=None if candidates.person is None else candidates.person[world.asked],
        assumptions=assumed,
        _kept={},
    )
