"""A party's own folder: all the data that a client process can see.

``records.safetensors`` holds the party's training and held-out records, ``party.json`` what else it may know.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from fedsim.core.data.records import Pool, Records
from fedsim.core.errors import InputError, plainly
from fedsim.core.files import read_arrays, read_json, write_arrays, write_json

AUXILIARY = "auxiliary.safetensors"
TARGETS = "targets.safetensors"
PUBLIC = "public.safetensors"


@dataclass(frozen=True)
class PartyRecords:
    """One party's records: those it trains on and those it holds out.

    train_person, heldout_person: (n,) int64, whose each record is, numbered within the table; None where the
        table names no persons
    """

    name: str
    train: Records
    heldout: Records
    train_person: np.ndarray | None = None
    heldout_person: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.train) + len(self.heldout)


@dataclass(frozen=True)
class PartyInfo:
    """What a party's process may know beside its own records.

    partition: its number; sector: what kind of organisation it is
    malicious, accomplice: whether it is the adversary, or shares what it sees with it
    classes: number of classes
    names, sizes: of all parties, by partition; sizes are numbers of training records, which are public
    persons: likewise, numbers of persons in them; empty where the table names none
    """

    partition: int
    sector: str
    malicious: bool
    accomplice: bool
    classes: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    persons: tuple[int, ...] = ()


_INFO = TypeAdapter(PartyInfo)


def arrays_of(party: PartyRecords, between: str) -> dict[str, np.ndarray]:
    """Return the party's records, and whose each is where it is known, by 'side' + ``between`` + 'what'."""
    arrays = {
        ("train", "features"): party.train.features,
        ("train", "labels"): party.train.labels,
        ("heldout", "features"): party.heldout.features,
        ("heldout", "labels"): party.heldout.labels,
        ("train", "person"): party.train_person,
        ("heldout", "person"): party.heldout_person,
    }
    return {between.join(name): array for name, array in arrays.items() if array is not None}


def write_party(folder: Path, party: PartyRecords, info: PartyInfo) -> None:
    """Write the party's records, and what else it may know, into ``folder``.

    Raises:
        InputError: the folder cannot be written to.
    """
    write_arrays(folder / "records.safetensors", arrays_of(party, "."))
    write_json(folder / "party.json", {"name": party.name, "info": dataclasses.asdict(info)})


def read_party(folder: Path) -> tuple[PartyRecords, PartyInfo]:
    """Return what `write_party` wrote into ``folder``.

    Raises:
        InputError: a file is missing or corrupt.
    """
    arrays = read_arrays(folder / "records.safetensors")
    about = read_json(folder / "party.json")
    try:
        train, heldout = (
            Records(arrays[f"{split}.features"], arrays[f"{split}.labels"]) for split in ("train", "heldout")
        )
        owners = arrays.get("train.person"), arrays.get("heldout.person")
        return PartyRecords(about["name"], train, heldout, *owners), _INFO.validate_python(about["info"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"cannot read {folder}: it is not a party's folder ({plainly(error)})") from error


def write_public(folder: Path, public: Records) -> None:
    """Put public records into the folder of a party that stops its training by them."""
    write_arrays(folder / PUBLIC, {"features": public.features, "labels": public.labels})


def read_public(folder: Path) -> Records:
    """Read what `write_public` wrote.

    Raises:
        InputError: the file is missing or corrupt.
    """
    arrays = read_arrays(folder / PUBLIC)
    return Records(arrays["features"], arrays["labels"])


def write_pool(folder: Path, name: str, pool: Pool) -> None:
    """Put records into the adversary's folder, no truth among them.

    name: `AUXILIARY`, what it owns besides; `TARGETS`, what it acts on where it is active
    """
    write_arrays(folder / name, pool.arrays())


def read_pool(folder: Path, name: str) -> Pool:
    """Read what `write_pool` wrote.

    Raises:
        InputError: the file is missing or corrupt.
    """
    arrays = read_arrays(folder / name)
    try:
        return Pool.from_arrays(arrays)
    except KeyError as error:
        raise InputError(f"cannot read {folder / name}: it has no array {error}") from error
