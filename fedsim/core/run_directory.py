"""RunDirectory: the only reader and writer of a run's files.

    runs/<name>/
      scenario.toml      the exact scenario, defaults filled in; `fedsim run` on it repeats the run
      manifest.json      versions, seeds, data hashes, engine, machine, wall times
      schema.json        how a raw record becomes features: declared or learnt from public records
      rounds.parquet     game, round, party, status, loss, accuracy, auc, epsilon, party_epsilon, seconds
      models/game-000/round-000.safetensors …
      parties/game-000/000-hospital-1/   what that party's process may read: its own records
      observations/game-000/             what the adversary kept, and nothing else
      accomplices/game-000/001-…/        what an accomplice shares with it, if 'coalition' is an observer
      server_observations/game-000/      what the server saw, if it is an observer
      checkpoints/game-000.safetensors   state of the parties and the strategy after the last whole round
      candidates-000.safetensors         the records that the adversary is asked about, no truth in them
      truth.parquet      who is a member; written and read by `fedsim.evaluation.truth` alone
      scores.parquet     game, attack, candidate, score, threshold
      leakage.parquet    attack, party, game, metric, value, low, high, n_members, n_nonmembers, note
      source_scores.parquet  game, attack, candidate, party, score: which party is it a member of?
      sources.parquet    attack, game, metric, value, low, high, n
      serving/           keys, budgets and log of the released model: see `fedsim.serving.state`

An observer other than the participant names its attacks 'outsider/…', 'coalition/…' or 'server/…'.

Nothing in it is a pickle, and every file is written whole or not at all.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from fedsim.core import files
from fedsim.core.data.records import Pool
from fedsim.core.errors import InputError
from fedsim.core.scenario.reading import parse, save
from fedsim.core.scenario.settings import Scenario

FORMAT = 1


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
            path.mkdir(parents=True, exist_ok=True)
            taken = any(path.iterdir())
        except OSError as error:
            raise files.cannot_write(path, error) from error
        if taken:
            raise InputError(f"{path} is not empty; choose another folder with --out")
        run = RunDirectory(path.resolve())
        save(scenario, run.path / "scenario.toml")
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
        manifest = files.read_json(manifest_path)
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise InputError(f"{manifest_path}: format = {found!r}; this fedsim reads format {FORMAT}")
        return RunDirectory(path.resolve())

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario of this run, defaults filled in."""
        path = self.path / "scenario.toml"
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise files.cannot_read(path, error) from error
        return parse(document, source=str(path))

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, seeds, hashes, engine, machine, wall times, completeness."""
        path = self.path / "manifest.json"
        return files.read_json(path) if path.exists() else {}

    def update_manifest(self, **entries: Any) -> None:
        """Add or replace entries of the manifest."""
        files.write_json(self.path / "manifest.json", {**self.manifest, **entries})

    # ---------------------------------------------------------------- parties
    def party_folder(self, game: int, partition: int, name: str) -> Path:
        """Folder of one party in one game: all that its process may read."""
        return self.path / "parties" / f"game-{game:03d}" / f"{partition:03d}-{name}"

    def observations(self, game: int) -> Path:
        """Folder of what the adversary kept in one game."""
        return self.path / "observations" / f"game-{game:03d}"

    def accomplice(self, game: int, partition: int, name: str) -> Path:
        """Folder of what one accomplice of the adversary shares with it in one game."""
        return self.path / "accomplices" / f"game-{game:03d}" / f"{partition:03d}-{name}"

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

    def last_round(self, game: int) -> int:
        """Return the number of the last global model kept, -1 where there is none."""
        kept = self.model_path(game, 0).parent.glob("round-*.safetensors")
        return max((int(path.stem.removeprefix("round-")) for path in kept), default=-1)

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
        files.write_arrays(self.path / f"candidates-{game:03d}.safetensors", candidates.arrays())

    def read_candidates(self, game: int) -> Pool:
        """Read the records that the adversary is asked about."""
        return Pool.from_arrays(files.read_arrays(self.path / f"candidates-{game:03d}.safetensors"))

    # ----------------------------------------------------------------- tables
    def table(self, name: str) -> pd.DataFrame:
        """Read one of the tables 'rounds', 'scores', 'leakage'.

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


def scores_table(scores: Mapping[str, np.ndarray], thresholds: Mapping[str, float]) -> pd.DataFrame:
    """Return findings as a table: attack, candidate, score, threshold."""
    parts = [
        pd.DataFrame(
            {
                "attack": name,
                "candidate": np.arange(len(values)),
                "score": values,
                "threshold": thresholds[name],
            }
        )
        for name, values in scores.items()
    ]
    return pd.concat(parts, ignore_index=True)


def new_run_path(parent: Path, name: str) -> Path:
    """Return ``parent/name``, or ``parent/name-2`` and so on where that is taken."""
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


def runs_in(parent: Path) -> list[RunDirectory]:
    """Return the runs below ``parent``, oldest first."""
    if not parent.is_dir():
        raise InputError(f"{parent} is not a folder; runs are kept in 'runs' by default")
    manifests = sorted(parent.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return [RunDirectory(path.parent) for path in manifests]
