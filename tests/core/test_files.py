from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.core import files
from fedsim.core.errors import InputError


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})

    def break_off(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        files.write_atomically(path, break_off)
    assert files.read_json(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["value.json"]


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def no_space(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"table\.parquet: the disk is full; .*--resume"):
        files.write_atomically(tmp_path / "table.parquet", no_space)


def test_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/below/x\.json: Not a directory"):
        files.write_json(tmp_path / "file" / "below" / "x.json", {})


@pytest.mark.parametrize("read", [files.read_json, files.read_table, files.read_arrays])
def test_missing_and_corrupt_files_are_named(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="absent: there is no such file"):
        read(tmp_path / "absent")
    (tmp_path / "corrupt").write_bytes(b"\x00\x01 not a file of ours")
    with pytest.raises(InputError, match=r"cannot read .*corrupt"):
        read(tmp_path / "corrupt")


def test_round_trips(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1, 2], "b": [0.5, np.inf]})
    files.write_table(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(files.read_table(tmp_path / "t.parquet"), table)
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}  # not contiguous
    files.write_arrays(tmp_path / "a.safetensors", arrays)
    np.testing.assert_array_equal(files.read_arrays(tmp_path / "a.safetensors")["w"], arrays["w"])


def test_files_can_be_read_by_whoever_the_umask_allows(tmp_path: Path) -> None:
    files.write_text(tmp_path / "report.html", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "report.html").stat().st_mode == (tmp_path / "plain").stat().st_mode
