"""RunDirectory: the only reader and writer of a run's files.

    runs/<name>/
      scenario.toml      the exact scenario, defaults filled in; `fedsim run` on it repeats the run
      manifest.json      versions, seeds, data hashes, engine, machine, wall times
      rounds.parquet     game, round, party, status, loss, accuracy, auc, epsilon, party_epsilon, seconds
      models/game-000/round-000.safetensors …
      parties/game-000/000-hospital-1/   what that party's process may read: its own records
      observations/game-000/             what the adversary kept, and nothing else
      accomplices/game-000/001-…/        what an accomplice shares with it, if 'coalition' is an observer
      server_observations/game-000/      what the server saw, if it is an observer
      checkpoints/game-000.safetensors   state of the parties and the strategy after the last whole round
      schema.json        how a raw record becomes features: see `fedsim.core.data.released`
      candidates-000.safetensors         the records that the adversary is asked about, no truth in them
      persons-000.safetensors            all records of their persons, where these have several
      worlds-000.safetensors             what it owns of them in each world: see `fedsim.core.data.worlds`
      layout.json        which features are which column's, as `fedsim.core.data.layout` writes it
      truth.parquet      who is a member; written and read by `fedsim.evaluation.truth` alone
      scores.parquet     game, observer, attack, world, candidate, score, threshold
      leakage.parquet    observer, attack, world, party, game, metric, value, low, high, n_members,
                         n_nonmembers, note
      ladder.parquet     world, attack, attacks, value, low, high, tpr, tpr_low, tpr_high, note, n_members,
                         n_nonmembers: the participant's strongest attack in each world
      strongest.parquet  party, observer, attack, attacks, value, low, high, n_members, n_nonmembers:
                         the attack with the largest AUC, its interval allows for having chosen it; this and
                         all below is of the headline's world, the scenario's first
      scores_by_round.parquet  game, observer, attack, round, candidate, score: attacks on each round's model
      leakage_by_round.parquet  observer, attack, round, game, metric (auc, tpr_at_fpr_0.01), value, low,
                         high, n_members, n_nonmembers, note: these joined with the truth, over all parties
      confidence.parquet     round, edge, members, nonmembers, game: how sure the rounds' models were of the
                         candidates' labels; confidence_rounds.parquet what that tells, by round
      source_scores.parquet  game, observer, attack, candidate, party, score: which party is it a member of?
      sources.parquet    observer, attack, game, metric, value, low, high, n
      attacks.parquet    observer, attack, sees, needs, assumes, source, shadows, simulates: as declared
      not_run.parquet    game, observer, attack, world, reason: attacks not run; absent where all were
      foreign.json       where the models came from, if fedsim did not make them: see `fedsim.runs.foreign`
      serving/           keys, budgets and log of the released model: see `fedsim.serving.state`
      attributes.parquet, inversion.parquet, gradient.parquet, counts.parquet, inverted.safetensors
                         what `fedsim.runs.beyond` made of a finished run, where it was asked

An attack is known by the pair of its observer and its name; it is scored in each world.

Nothing in it is a pickle, and every file is written whole or not at all.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import safe_open
from typing_extensions import TypedDict, Unpack

from fedsim.core import files, trust
from fedsim.core.data import worlds
from fedsim.core.data.records import PersonRecords, Pool
from fedsim.core.data.worlds import World
from fedsim.core.errors import InputError
from fedsim.core.scenario.adversary import Observer
from fedsim.core.scenario.reading import parse, save
from fedsim.core.scenario.settings import Scenario

PRIVATE = 0o700
"""Mode of a run's folder: it holds encoded private records, and who is a member. One that was there keeps its
own."""

FORMAT = 3
"""Of the folder's files and columns, in the manifest. 1: the observer was a prefix of the attack's name;
2: all of a run was one world."""


class GameEntry(TypedDict):
    """What the manifest says of a finished game.

    rounds: rounds run; final_model_sha256: of the file of the last global model; seconds: wall time
    """

    rounds: int
    final_model_sha256: str
    seconds: float


class Manifest(TypedDict, total=False):
    """What ``manifest.json`` says of a run; a field is there from the moment at which it is known.

    format: of the run directory (`FORMAT`)
    complete: whether every game is evaluated; prepared: whether all records have been dealt
    engine: 'inprocess', 'ray', 'superlink' or 'flwr run'
    workers: processes for the parties, cores for the shadows
    adversary: name of the malicious party; record: what a record is called, as 'patient'
    parties: name → number of records, by partition; classes: spellings of the label
    input_shape: of one record's features
    notices: what a person should know of the run, a sentence each
    data_sha256: file → hash of the tables that were read
    seed: of the scenario; created: ISO 8601, UTC
    dp: party → its plan, in JSON's numbers; central_dp: what central DP spends on a party
    games: number of a finished game → what came of it
    twins: names of runs beside this one, of the same scenario under other DP-SGD; tags: words of a person's
    world_seconds: number of a game → world → seconds that the participant's attacks took in it
    training_path: party → how its rounds without DP are computed, see `fedsim.core.training.paths`
    shadow_path: how shadow federations are trained: 'fused', 'stacked' or 'one by one'; 'none' can be
    versions: package → version; machine: system, processor, cores
    released: number of a game → the round whose model it releases, where that is not the last
    deployed: whether its parties are on machines of their own, whose records were never here
    node_patience: seconds to wait for all of their nodes before round 1
    pruned: when its private records were removed, ISO 8601, UTC; absent where they were not
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    format: int
    complete: bool
    prepared: bool
    engine: str
    workers: int
    adversary: str
    record: str
    parties: dict[str, int]
    classes: list[Any]
    input_shape: list[int]
    notices: list[str]
    data_sha256: dict[str, str]
    seed: int
    created: str
    dp: dict[str, dict[str, Any]]
    central_dp: dict[str, Any]
    games: dict[str, GameEntry]
    released: dict[str, int]
    twins: list[str]
    tags: list[str]
    world_seconds: dict[str, dict[str, float]]
    training_path: dict[str, str]
    shadow_path: str
    versions: dict[str, str]
    machine: dict[str, Any]
    deployed: bool
    node_patience: float
    pruned: str


_MANIFEST = TypeAdapter(Manifest)

ON_HELDOUT = ("loss", "accuracy", "auc", "brier", "n_heldout", "public_loss")
"""Columns of ``rounds.parquet`` that are about a model on records that nobody trained on."""

_DEALT = ("truth.parquet", "schema.json")

PRIVATE_FOLDERS = ("parties", "observations", "accomplices", "server_observations", "checkpoints")
"""Folders that hold private records or what follows from them; each its owner's alone, whatever it is."""

_PRIVATE_FILES = (
    "candidates-*.safetensors", "persons-*.safetensors", "worlds-*.safetensors", "truth.parquet",
    "secrets.parquet", "memorised.parquet",
)  # fmt: skip

PUBLIC_FOLDER = "public"
"""Folder of the public records that the server looks at, where the federation stops early by them."""

INITIAL = "initial.safetensors"
"""w_0 where it was trained on public records; each game begins with it."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a federation needs to go on after a whole round, beside that round's global model.

    round: rounds completed
    states: partition id → the bytes of that client's Flower ``Context.state``
    strategy: the strategy's own arrays, such as server momentum
    """

    round: int
    states: dict[int, bytes]
    strategy: dict[str, np.ndarray]


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder."""

    path: Path

    # ------------------------------------------------------------------ life
    @staticmethod
    def create(path: Path, scenario: Scenario) -> RunDirectory:
        """Make the folder at ``path``, which must be absent or empty, and put the scenario into it.

        Raises:
            InputError: the folder is taken or cannot be written to.
        """
        try:
            path.mkdir(PRIVATE, parents=True, exist_ok=True)
            taken = any(path.iterdir()) or not _claim(path / "scenario.toml")
            for folder in () if taken or files.is_private(path) else PRIVATE_FOLDERS:
                (path / folder).mkdir(PRIVATE)
        except OSError as error:
            raise files.cannot_write(path, error) from error
        if taken:
            raise InputError(f"{path} is not empty; choose another folder with --out")
        run = RunDirectory(path.resolve())
        save(scenario, run.path / "scenario.toml")
        trust.mark(run.path, scenario)
        run.update_manifest(format=FORMAT, complete=False)
        return run

    @staticmethod
    def open(path: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            InputError: it is no run, is unreadable, or was written by another version.
        """
        manifest_path = path / "manifest.json"
        if not manifest_path.is_file():
            hint = "there is no such folder" if not path.exists() else "it has no manifest.json"
            raise InputError(f"{path} is not a run of fedsim: {hint}; list runs with `fedsim runs`")
        run = RunDirectory(path.resolve())
        if run.format != FORMAT:
            raise InputError(
                f"{manifest_path}: format = {run.format!r}; this fedsim reads format {FORMAT}: run its "
                "scenario.toml again, or use the fedsim that wrote it"
            )
        return run

    @property
    def format(self) -> object:
        """The format that the folder was written in, None where its manifest does not say; see `FORMAT`."""
        manifest = files.read_json(self.path / "manifest.json")
        return manifest.get("format") if isinstance(manifest, dict) else None

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario of this run, defaults filled in."""
        path = self.path / "scenario.toml"
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise files.cannot_read(path, error) from error
        scenario = parse(document, source=str(path))
        trust.guard(self.path, scenario)
        return scenario

    @property
    def manifest(self) -> Manifest:
        """What is known of the run so far; empty where there is no manifest yet.

        Raises:
            InputError: the file cannot be read, or an entry has another type.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            return {}
        try:
            return _MANIFEST.validate_python(files.read_json(path), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"])) or "the document"
            raise InputError(
                f"{path}: {key}: {problem['msg']}; the file has been changed or damaged"
            ) from error

    def update_manifest(self, **entries: Unpack[Manifest]) -> None:
        """Add or replace entries of the manifest."""
        files.write_json(self.path / "manifest.json", {**self.manifest, **entries})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running the same folder; the lock ends with the process.

        Raises:
            InputError: another process is running it.
        """
        with files.locked(self.path, f"{self.path} is being run by another process; wait until it is done"):
            yield

    def _dealt(self) -> list[Path]:
        names = ("candidates", "persons", "worlds")
        return [path for name in names for path in self.path.glob(f"{name}-*.safetensors")]

    def forget_records(self) -> None:
        """Remove what has been dealt, so that it can be dealt anew."""
        shutil.rmtree(self.path / "parties", ignore_errors=True)
        for path in [*self._dealt(), *map(self.path.joinpath, _DEALT)]:
            path.unlink(missing_ok=True)

    def private_parts(self) -> list[Path]:
        """Return the files with private records, what was seen of them, and who is a member."""
        below = [path for folder in PRIVATE_FOLDERS for path in (self.path / folder).rglob("*")]
        beside = [path for pattern in _PRIVATE_FILES for path in self.path.glob(pattern)]
        return sorted(path for path in [*below, *beside] if path.is_file() and not path.is_symlink())

    def remove_private_parts(self) -> int:
        """Remove these for good, and return how many bytes that freed; what is public, and results, stay.

        Raises:
            InputError: one of them cannot be removed.
        """
        freed = 0
        for path in self.private_parts():
            try:
                size = path.stat().st_size
                path.unlink()
            except OSError as error:
                raise files.cannot_write(path, error) from error
            freed += size
        for folder in PRIVATE_FOLDERS:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        return freed

    # ---------------------------------------------------------------- parties
    def party_folder(self, game: int, partition: int, name: str) -> Path:
        """Folder of one party in one game: all that its process may read."""
        return self.path / "parties" / f"game-{game:03d}" / f"{partition:03d}-{files.slug(name)}"

    def observations(self, game: int) -> Path:
        """Folder of what the adversary kept in one game."""
        return self.path / "observations" / f"game-{game:03d}"

    def accomplice(self, game: int, partition: int, name: str) -> Path:
        """Folder of what one accomplice of the adversary shares with it in one game."""
        return self.path / "accomplices" / f"game-{game:03d}" / f"{partition:03d}-{files.slug(name)}"

    def server_observations(self, game: int) -> Path:
        """Folder of what the server saw in one game; no party reads it."""
        return self.path / "server_observations" / f"game-{game:03d}"

    # ----------------------------------------------------------------- models
    def model_path(self, game: int, round: int) -> Path:
        """File of the global model after ``round`` rounds (0: as initialised)."""
        return self.path / "models" / f"game-{game:03d}" / f"round-{round:03d}.safetensors"

    def write_model(self, game: int, round: int, weights: dict[str, np.ndarray]) -> None:
        """Keep the global model after ``round`` rounds."""
        files.write_arrays(self.model_path(game, round), weights)

    def read_model(self, game: int, round: int) -> dict[str, np.ndarray]:
        """Read the global model after ``round`` rounds."""
        return files.read_arrays(self.model_path(game, round))

    def read_initial(self) -> dict[str, np.ndarray] | None:
        """Return the w_0 that was trained on public records, None where there is none."""
        path = self.path / INITIAL
        return files.read_arrays(path) if path.exists() else None

    def last_round(self, game: int) -> int:
        """Return the number of the last global model kept, -1 where there is none."""
        files_of_rounds = self.model_path(game, 0).parent.glob("round-*.safetensors")
        return max((int(path.stem.removeprefix("round-")) for path in files_of_rounds), default=-1)

    def released_round(self, game: int) -> int:
        """Return the round whose model is the game's result: the best one where `patience` is set.

        Else, and in a game that is not finished, the last.
        """
        return self.manifest.get("released", {}).get(str(game), self.last_round(game))

    def final_rounds(self) -> pd.DataFrame:
        """Return what ``rounds.parquet`` says of each game's result, by game and party.

        Utility (`ON_HELDOUT`) is that of the released model; all else, ε above all, is of all rounds.
        """
        rounds = self.table("rounds").sort_values("round", kind="stable")
        last = rounds.groupby(["game", "party"], as_index=False).last()
        released = self.manifest.get("released", {})
        if not released:
            return last
        columns = [name for name in ON_HELDOUT if name in rounds]
        wanted = rounds["game"].map(lambda game: released.get(str(game), -1))
        best = rounds[rounds["round"] == wanted].set_index(["game", "party"])[columns]
        last = last.set_index(["game", "party"])
        last.loc[best.index, columns] = best
        return last.reset_index()

    # ------------------------------------------------------------- checkpoints
    def _checkpoint_path(self, game: int) -> Path:
        return self.path / "checkpoints" / f"game-{game:03d}.safetensors"

    def write_checkpoint(self, game: int, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; it is the last thing written in a round."""
        arrays = {f"strategy/{name}": array for name, array in checkpoint.strategy.items()}
        for partition, state in checkpoint.states.items():
            arrays[f"state/{partition}"] = np.frombuffer(state, dtype=np.uint8)
        metadata = {"round": str(checkpoint.round)}
        files.write_arrays(self._checkpoint_path(game), arrays, metadata)

    def read_checkpoint(self, game: int) -> Checkpoint | None:
        """Return the checkpoint of a game that was begun, or None."""
        path = self._checkpoint_path(game)
        if not path.exists():
            return None
        arrays = files.read_arrays(path)
        with safe_open(path, framework="numpy") as handle:
            round = int(handle.metadata()["round"])
        states = {
            int(name.removeprefix("state/")): array.tobytes()
            for name, array in arrays.items()
            if name.startswith("state/")
        }
        strategy = {
            name.removeprefix("strategy/"): array
            for name, array in arrays.items()
            if name.startswith("strategy/")
        }
        return Checkpoint(round, states, strategy)

    def forget_checkpoint(self, game: int) -> None:
        """Remove the checkpoint, so that the game starts from round 1."""
        self._checkpoint_path(game).unlink(missing_ok=True)

    # ------------------------------------------------------------- candidates
    def write_candidates(self, game: int, candidates: Pool) -> None:
        """Keep the records that the adversary is asked about."""
        path = self.path / f"candidates-{game:03d}.safetensors"
        files.write_arrays(path, candidates.arrays(), private=True)

    def read_candidates(self, game: int) -> Pool:
        """Read the records that the adversary is asked about."""
        return Pool.from_arrays(files.read_arrays(self.path / f"candidates-{game:03d}.safetensors"))

    def write_persons(self, game: int, persons: PersonRecords) -> None:
        """Keep all records of the candidates' persons."""
        files.write_arrays(self._persons_path(game), persons.arrays(), private=True)

    def read_persons(self, game: int) -> PersonRecords | None:
        """Read all records of the candidates' persons, None where the table names no persons."""
        path = self._persons_path(game)
        return PersonRecords.from_arrays(files.read_arrays(path)) if path.exists() else None

    def _persons_path(self, game: int) -> Path:
        return self.path / f"persons-{game:03d}.safetensors"

    def write_worlds(self, game: int, named: Mapping[str, World]) -> None:
        """Keep what the adversary owns in each world."""
        path = self.path / f"worlds-{game:03d}.safetensors"
        files.write_arrays(path, worlds.arrays(named), private=True)

    def read_worlds(self, game: int) -> dict[str, World]:
        """Read what the adversary owns in each world."""
        return worlds.from_arrays(files.read_arrays(self.path / f"worlds-{game:03d}.safetensors"))

    # ----------------------------------------------------------------- tables
    def table(self, name: str) -> pd.DataFrame:
        """Read one of the tables above, such as 'scores'.

        Raises:
            InputError: the run has not come that far, or the file is corrupt.
        """
        return files.read_table(self.path / f"{name}.parquet")

    def has(self, name: str) -> bool:
        """Whether the table is there."""
        return (self.path / f"{name}.parquet").exists()

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Replace a whole table."""
        files.write_table(self.path / f"{name}.parquet", table)

    def write_game(self, name: str, game: int, rows: pd.DataFrame) -> None:
        """Replace one game's rows in a table, keeping the other games'."""
        parts = [rows.assign(game=game)]
        if self.has(name):
            before = self.table(name)
            parts.insert(0, before[before["game"] != game])
        whole = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
        columns = ["game", *[column for column in whole.columns if column != "game"]]
        self.write_table(name, whole[columns].sort_values("game", kind="stable", ignore_index=True))


def scores_table(
    observer: Observer,
    world: str,
    asked: np.ndarray,
    scores: Mapping[str, np.ndarray],
    thresholds: Mapping[str, float],
) -> pd.DataFrame:
    """Return what an observer's attacks found in a world as a table; asked: (m,) int, the candidates."""
    columns = ["observer", "attack", "world", "candidate", "score", "threshold"]
    parts = [
        pd.DataFrame(
            dict(zip(columns, (observer, name, world, asked, values, thresholds[name]), strict=True))
        )
        for name, values in scores.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def by_round_table(
    observer: Observer, asked: np.ndarray, found: Mapping[str, Mapping[int, np.ndarray]]
) -> pd.DataFrame:
    """Return what attacks found in each round's model: observer, attack, round, candidate, score."""
    parts = [
        pd.DataFrame(
            {
                "observer": observer,
                "attack": name,
                "round": t,
                "candidate": asked,
                "score": values,
            }
        )
        for name, rounds in found.items()
        for t, values in rounds.items()
    ]
    columns = ["observer", "attack", "round", "candidate", "score"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def not_run_table(observer: Observer, world: str, reasons: Mapping[str, str]) -> pd.DataFrame:
    """Return the attacks of an observer that could not be run in a world: observer, attack, world, reason."""
    rows = [(observer, name, world, reason) for name, reason in reasons.items()]
    return pd.DataFrame(rows, columns=["observer", "attack", "world", "reason"])


def _claim(path: Path) -> bool:
    """Create the file; False where another process was quicker."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def new_run_path(parent: Path, name: str) -> Path:
    """Make and return ``parent/name``, or ``parent/name-2`` and so on where that is taken.

    The folder is empty, and no other process is given it.

    Raises:
        InputError: ``parent`` cannot be written to.
    """
    path, number = parent / name, 1
    while True:
        try:
            path.mkdir(PRIVATE, parents=True)
            return path
        except FileExistsError:
            number += 1
            path = parent / f"{name}-{number}"
        except OSError as error:
            raise files.cannot_write(path, error) from error


def runs_in(parent: Path) -> list[RunDirectory]:
    """Return the runs below ``parent``, oldest first."""
    if not parent.is_dir():
        raise InputError(f"{parent} is not a folder; runs are kept in 'runs' by default")
    manifests = sorted(parent.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return [RunDirectory(path.parent) for path in manifests]
