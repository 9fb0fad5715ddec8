"""Going on with a run that was stopped while its records were dealt."""

from __future__ import annotations

import errno
from pathlib import Path

import pandas as pd
import pytest
from support.runs import final_sha, finished_run, scenario

from fedsim.core import files
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import play, prepare, resume


def test_a_run_that_was_stopped_while_records_were_dealt_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished_run(tmp_path, out="whole")
    prepared = prepare.check(scenario(tmp_path), None)
    write, files_written = files.write_atomically, 0

    def until_the_disk_is_full(path: Path, fill, private=False) -> None:  # type: ignore[no-untyped-def]
        nonlocal files_written
        files_written += 1
        if files_written > 6:
            raise files.cannot_write(path, OSError(errno.ENOSPC, "No space left on device"))
        write(path, fill, private)

    monkeypatch.setattr(files, "write_atomically", until_the_disk_is_full)
    with pytest.raises(InputError, match="the disk is full; free some space and use --resume"):
        prepare.prepare(prepared, tmp_path / "run")
    monkeypatch.setattr(files, "write_atomically", write)
    (tmp_path / "run" / "parties" / ".records.safetensors.abcd1234").write_text("half")
    stopped = RunDirectory.open(tmp_path / "run")
    assert not stopped.manifest.get("prepared") and (stopped.path / "parties").is_dir()
    with pytest.raises(InputError, match="was stopped before its records were dealt"):
        play.federate(stopped)
    run = resume.ready(stopped)
    assert not list(run.path.rglob(".records*"))
    play.federate(run)
    assert final_sha(run) == final_sha(whole)
    pd.testing.assert_frame_equal(run.table("scores"), whole.table("scores"))


def test_a_run_whose_records_are_dealt_keeps_them(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*.safetensors")}
    assert resume.ready(run) == run
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*.safetensors")}


def test_a_run_that_is_running_is_left_alone(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    with run.locked(), pytest.raises(InputError, match="is being run by another process"):
        resume.ready(run)
