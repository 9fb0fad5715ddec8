"""What a run stands on is what it was: digests of its files, noted when written and checked before use.

``digests.json`` holds the SHA-256 of every file that a result follows from, by its path in the run's folder,
and of the user's own modules, by their path. It finds what was changed by mistake, by a full disk or by a
copy; it is no signature.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fedsim.core import files, trust
from fedsim.core.data import text
from fedsim.core.data.layout import LAYOUT
from fedsim.core.errors import InputError
from fedsim.core.imports import is_reference, source_file
from fedsim.core.run_directory import INITIAL, PUBLIC_FOLDER, RunDirectory
from fedsim.core.scenario.reading import FOREIGN
from fedsim.core.scenario.settings import Scenario
from fedsim.evaluation.secrets import SECRETS

DIGESTS = "digests.json"

TABLES = (
    "rounds",
    "attacks",
    "not_run",
    "scores",
    "leakage",
    "strongest",
    "scores_by_round",
    "leakage_by_round",
    "confidence",
    "confidence_rounds",
    "ladder",
    "source_scores",
    "sources",
)

OBSERVED = ("models", "observations", "accomplices", "server_observations", "release")

FREE = ("progress.json",)
"""Files in noted folders that say nothing of a result."""


def note(run: RunDirectory, *parts: str) -> None:
    """Note the digests of these files, and of all files in these folders, as they are now.

    parts: paths in the run's folder; one that is not there is passed over
    """
    known = _known(run) if (run.path / DIGESTS).exists() else {}
    others = {name: digest for name, digest in known.items() if not _is_in(name, parts)}
    fresh = {path.relative_to(run.path).as_posix(): _digest(path) for path in _files(run, parts)}
    files.write_json(run.path / DIGESTS, others | fresh)


def note_prepared(run: RunDirectory) -> None:
    """Note what is there before round 1: scenario, records, truth, and modules of the user's own."""
    names = ("truth.parquet", "schema.json", LAYOUT, SECRETS, text.FILE, INITIAL, FOREIGN)
    note(run, "scenario.toml", *names, "parties", "release", PUBLIC_FOLDER, *_asked(run))
    code = {str(path): _digest(path) for path in own_modules(run.scenario)}
    files.write_json(run.path / DIGESTS, _known(run) | code)


def note_game(run: RunDirectory, game: int) -> None:
    """Note what a finished game left: models, and what each observer kept."""
    note(run, *(f"{part}/game-{game:03d}" for part in OBSERVED))


def note_tables(run: RunDirectory) -> None:
    """Note the tables of results."""
    note(run, *(f"{name}.parquet" for name in TABLES))


def verify(run: RunDirectory, *parts: str) -> None:
    """Check that what was noted is there, and is what it was.

    parts: files and folders to check, 'code' for the user's own modules; default: everything

    Raises:
        InputError: naming the first file that is missing or has changed.
    """
    check_usable(run)
    _compare(run, parts)


def check_usable(run: RunDirectory) -> None:
    """Refuse a run that lacks its private records, and one from elsewhere that brings code.

    Raises:
        InputError: the records were removed, or nobody has said that the code may be imported.
    """
    check_whole(run)
    trust.require(run.path, run.scenario)


def check_simulated(run: RunDirectory) -> None:
    """Refuse the run of a deployment's server, which nobody attacked there.

    Raises:
        InputError: saying what it holds instead.
    """
    if run.manifest.get("deployed"):
        raise InputError(
            f"{run.path}: it is the server's of a deployment, whose parties keep their records: "
            "rounds.parquet and models/ are what it holds; what a malicious node found, "
            "`fedsim deploy attack` says there"
        )


def check_whole(run: RunDirectory) -> None:
    """Refuse a run without its private records, of which nothing but what it found can be asked.

    Raises:
        InputError: they were removed, or never were here.
    """
    check_simulated(run)
    pruned = run.manifest.get("pruned")
    if pruned:
        raise InputError(
            f"{run.path}: its private records were removed on {pruned[:10]} (`fedsim runs prune`); its "
            "report.html stays, and `show` and `serve` still work; for the rest run its scenario.toml again"
        )


def _compare(run: RunDirectory, parts: Sequence[str]) -> None:
    for name, digest in _known(run).items():
        if parts and not _is_in(name, parts):
            continue
        path = run.path / name  # an absolute path stays as it is
        if not path.is_file():
            raise InputError(f"{path} is missing; the run cannot be used without it")
        if _digest(path) != digest:
            raise InputError(f"{path} has changed since the run wrote or read it; {_advice(name)}")


def verify_attacked(run: RunDirectory) -> None:
    """Check what attacks read: the scenario, the truth, and what every observer kept."""
    verify(run, "scenario.toml", "truth.parquet", "parties", "code", *OBSERVED)


def verify_asked(run: RunDirectory) -> None:
    """Check what `fedsim.runs.beyond` reads: what attacks do, and which features are which column's."""
    verify_attacked(run)
    verify(run, LAYOUT, *_asked(run))


def _asked(run: RunDirectory) -> list[str]:
    """Return the files of those whom the adversary is asked about; of persons only where there are any."""
    games = range(run.scenario.games)
    return [
        f"{what}-{game:03d}.safetensors" for what in ("candidates", "persons", "worlds") for game in games
    ]


def verify_unfinished(run: RunDirectory, game: int) -> None:
    """Check a game that was stopped: the adversary must have kept the models of all rounds that are done.

    Raises:
        InputError: naming the first observation that is missing, or is not what was sent.
    """
    checkpoint, folder = run.read_checkpoint(game), run.observations(game)
    if checkpoint is None or not folder.is_dir():
        return
    for t in range(checkpoint.round + 1):
        path = folder / f"round-{t:03d}.safetensors"
        if not path.is_file():
            raise InputError(f"{path} is missing; without it the attacks would see another federation")
        seen, sent = files.read_arrays(path), run.read_model(game, t)
        if seen.keys() != sent.keys() or any(not np.array_equal(seen[name], sent[name]) for name in sent):
            raise InputError(f"{path} is not the model of round {t}: one of the two files has changed")


def own_modules(scenario: Scenario) -> list[Path]:
    """Return the files of the user's own model, strategy and records, as far as they are there.

    Not those of attacks: these may be mended, and repeated on what was observed.
    """
    federation, model = scenario.federation, scenario.model
    references = [(model.name, model.folder), (federation.strategy, federation.folder)]
    references += [(file, scenario.data.folder) for file in scenario.data.files]
    files_of = (source_file(name, folder) for name, folder in references if is_reference(name))
    return sorted({file.resolve() for file in files_of if file is not None})


@contextlib.contextmanager
def all_or_nothing(run: RunDirectory) -> Iterator[None]:
    """Put the tables of results, and their digests, back as they were where the body does not end well."""
    paths = [*(run.path / f"{name}.parquet" for name in TABLES), run.path / DIGESTS]
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        yield
    except BaseException:  # Ctrl-C as well
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            elif path.read_bytes() != content:
                files.write_bytes(path, content)
        raise


def open_results(path: Path) -> RunDirectory:
    """Open a run whose results are to be shown.

    Raises:
        InputError: it is no run, or the scenario or a table is not what the run wrote.
    """
    run = RunDirectory.open(path)
    check_simulated(run)
    _compare(run, ["scenario.toml", "truth.parquet", *(f"{name}.parquet" for name in TABLES)])
    return run


def verify_released(run: RunDirectory, game: int, *parts: str) -> None:
    """Check what a service answers with, which a run without its private records has as well."""
    _compare(run, ["scenario.toml", f"models/game-{game:03d}", *parts])


def check_prunable(run: RunDirectory) -> None:
    """Refuse a run that still needs its records.

    Raises:
        InputError: it is not finished.
    """
    if not run.manifest.get("complete"):
        raise InputError(f"{run.path} is not finished; without its records it never would be")


def forget_private(run: RunDirectory) -> int:
    """Remove the private records of a finished run, and what is noted of them; return the bytes freed.

    Raises:
        InputError: it is not finished, or another process is running it.
    """
    check_prunable(run)
    with run.locked():
        gone = {path.relative_to(run.path).as_posix() for path in run.private_parts()}
        known = {name: digest for name, digest in _known(run).items() if name not in gone}
        # Said first: a run that is stopped here is refused in a sentence, and can be pruned again.
        run.update_manifest(pruned=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
        files.write_json(run.path / DIGESTS, known)
        return run.remove_private_parts()


def _advice(name: str) -> str:
    if name == "scenario.toml" or Path(name).is_absolute():
        return "put it back, or start a new run"
    return "put it back, or run the scenario anew"


def _is_in(name: str, parts: Iterable[str]) -> bool:
    part_of_code = Path(name).is_absolute()
    return any(
        part == "code" if part_of_code else name == part or name.startswith(f"{part}/") for part in parts
    )


def _known(run: RunDirectory) -> dict[str, str]:
    if not run.manifest.get("prepared"):
        return {}
    return {str(name): str(digest) for name, digest in files.read_json(run.path / DIGESTS).items()}


def _files(run: RunDirectory, parts: Iterable[str]) -> Iterator[Path]:
    for part in parts:
        path = run.path / part
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in below if file.is_file() and file.name not in FREE)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
