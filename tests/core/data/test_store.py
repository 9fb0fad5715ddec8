from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.core.data.records import Pool, Records
from fedsim.core.data.store import (
    AUXILIARY,
    PartyInfo,
    PartyRecords,
    read_party,
    read_pool,
    write_party,
    write_pool,
)
from fedsim.core.errors import InputError
from fedsim.core.files import write_arrays


def party(shape: tuple[int, ...] = (3,)) -> PartyRecords:
    draw = np.random.default_rng(0)

    def records(n: int) -> Records:
        return Records(draw.normal(size=(n, *shape)).astype(np.float32), draw.integers(2, size=n))

    return PartyRecords("h-1", records(5), records(4))


INFO = PartyInfo(1, "hospital", False, True, 2, ("h-1", "h-2"), (5, 7))


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_what_is_written_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    written = party(shape)
    write_party(tmp_path / "h-1", written, INFO)
    read, found = read_party(tmp_path / "h-1")
    assert read.name == "h-1" and found == INFO and len(read) == 9
    for ours, theirs in ((written.train, read.train), (written.heldout, read.heldout)):
        np.testing.assert_array_equal(ours.features, theirs.features)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert theirs.features.dtype == np.float32 and theirs.labels.dtype == np.int64


def test_the_folder_holds_two_files_and_no_pickle(tmp_path: Path) -> None:
    write_party(tmp_path, party(), INFO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["party.json", "records.safetensors"]


def test_broken_folders_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_party(tmp_path / "none")
    write_party(tmp_path, party(), INFO)
    (tmp_path / "party.json").write_text("{}")
    with pytest.raises(InputError, match="it is not a party's folder"):
        read_party(tmp_path)
    (tmp_path / "records.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot read"):
        read_party(tmp_path)


def test_a_pool_is_read_as_it_was_written_or_named(tmp_path: Path) -> None:
    pool = Pool(party().train, np.arange(5) - 1)
    write_pool(tmp_path, AUXILIARY, pool)
    found = read_pool(tmp_path, AUXILIARY)
    np.testing.assert_array_equal(found.records.features, pool.records.features)
    np.testing.assert_array_equal(found.party, pool.party)
    write_arrays(tmp_path / AUXILIARY, {"features": pool.records.features})
    with pytest.raises(InputError, match=r"auxiliary\.safetensors: it has no array 'labels'"):
        read_pool(tmp_path, AUXILIARY)
