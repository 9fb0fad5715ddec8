"""One run, one folder, whoever starts at the same time; and a manifest of known types."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.core.errors import InputError
from fedsim.core.run_directory import Manifest, RunDirectory, new_run_path
from fedsim.core.scenario.reading import parse


def at_once(action: Callable[[], object], times: int = 8) -> list[object]:
    """Do the same in several threads, which start together; return what came of it, errors included."""
    barrier, came = threading.Barrier(times), []

    def act() -> None:
        barrier.wait()
        try:
            came.append(action())
        except InputError as error:
            came.append(error)

    threads = [threading.Thread(target=act) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return came


def test_runs_started_together_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = at_once(lambda: new_run_path(tmp_path / "runs", "s"))
    names = ["s", *(f"s-{number}" for number in range(2, 9))]
    assert sorted(str(path) for path in paths) == sorted(str(tmp_path / "runs" / name) for name in names)


def test_one_folder_is_given_to_one_run(tmp_path: Path) -> None:
    for trial in range(20):
        folder = tmp_path / str(trial)
        came = at_once(lambda folder=folder: RunDirectory.create(folder, parse({})))  # type: ignore[misc]
        made = [one for one in came if isinstance(one, RunDirectory)]
        assert len(made) == 1
        assert all("is not empty; choose another folder" in str(one) for one in came if one is not made[0])


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    made = (
        RunDirectory.create(tmp_path / "deep" / "run", parse({})).path,
        new_run_path(tmp_path / "runs", "s"),
    )
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700, 0o700]


def test_an_empty_folder_can_be_used(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, parse({})).path == tmp_path.resolve()


def test_a_folder_is_run_by_one_process(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", parse({}))
    with run.locked(), pytest.raises(InputError, match="is being run by another process"), run.locked():
        pass
    with run.locked():
        pass


def test_the_manifest_keeps_what_another_version_wrote(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", parse({}))
    path = run.path / "manifest.json"
    path.write_text(json.dumps({**run.manifest, "of_tomorrow": [1]}))
    run.update_manifest(workers=2)
    assert json.loads(path.read_text())["of_tomorrow"] == [1] and run.manifest["workers"] == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"parties": 3}', "manifest.json: parties: Input should be a valid dict"),
        (
            '{"games": {"0": {"rounds": "x"}}}',
            "manifest.json: games.0.rounds: Input should be a valid integer",
        ),
        ("[]", "manifest.json: the document: Input should be a valid dict"),
        ("{", "cannot read"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    run = RunDirectory.create(tmp_path / "run", parse({}))
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(InputError) as caught:
        _ = run.manifest
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_every_field_of_the_manifest_is_described() -> None:
    assert Manifest.__doc__ is not None
    for name in Manifest.__annotations__:
        assert name in Manifest.__doc__, name
