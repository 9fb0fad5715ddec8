from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fedsim.core import files
from fedsim.core.errors import InputError

UMASK = os.umask(0)
os.umask(UMASK)


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


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
    ids=["safetensors", "Arrow", "Python", "quota"],
)
def test_a_full_disk_is_known_whoever_writes(tmp_path: Path, error: Exception) -> None:
    """Each library has an error of its own for it; as they put it when they write to a full disk."""

    def write(temporary: Path) -> None:
        temporary.write_text("half of")
        raise error

    with pytest.raises(
        InputError, match=r"cannot write .*: the disk is full; free some space and use --resume"
    ):
        files.write_atomically(tmp_path / "x", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_one_sentence(tmp_path: Path, number: int) -> None:
    def refused(temporary: Path) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: refused (os error {number})")

    with pytest.raises(InputError, match="the folder is read-only; choose another one with --out"):
        files.write_atomically(tmp_path / "x", refused)


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from fedsim.core import files\n"
        "files.write_atomically(Path(sys.argv[1]), lambda temporary: os._exit(9))"
    )
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "round-001.safetensors"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert len(list(tmp_path.rglob(".*"))) == 1
    others = [tmp_path / name for name in (".gitignore", ".lock", "models/round-000.safetensors", ".a.b")]
    for other in others:
        other.write_text("theirs")
    files.remove_temporary(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


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


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_file_is_as_private_as_its_folder(tmp_path: Path) -> None:
    for mode, of_file, of_folder in ((0o700, 0o600, 0o700), (0o755, 0o666 & ~UMASK, 0o777 & ~UMASK)):
        folder = tmp_path / oct(mode)
        folder.mkdir()
        folder.chmod(mode)
        files.write_text(folder / "x", "x")
        files.write_text(folder / "deep" / "er" / "x", "x")
        files.write_arrays(folder / "deep" / "records", {"a": np.zeros(2)}, private=True)
        assert mode_of(folder / "x") == mode_of(folder / "deep" / "er" / "x") == of_file
        assert mode_of(folder / "deep") == mode_of(folder / "deep" / "er") == of_folder
        assert mode_of(folder / "deep" / "records") == 0o600


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("n", [3, 300_000], ids=["small", "large"])
def test_arrays_of_any_size_are_safetensors_own_file(tmp_path: Path, n: int) -> None:
    arrays = {"b": np.arange(n, dtype=np.float64)[::-1], "a": np.ones((2, 3), np.float32).T}
    files.write_arrays(tmp_path / "ours", arrays, {"round": "3"})
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, tmp_path / "theirs", {"round": "3"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_arrays_are_kept_once_and_replaced_by_others(tmp_path: Path) -> None:
    path, arrays = tmp_path / "w", {"a": np.arange(3.0)}
    files.keep_arrays(path, arrays)
    first = path.stat()
    files.keep_arrays(path, arrays)
    assert path.stat().st_ino == first.st_ino, "it was there"
    files.write_arrays(tmp_path / "again", arrays)
    assert path.read_bytes() == (tmp_path / "again").read_bytes()
    files.keep_arrays(path, {"a": np.arange(3.0) + 1})
    np.testing.assert_array_equal(files.read_arrays(path)["a"], np.arange(3.0) + 1)
