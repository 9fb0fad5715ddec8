"""What a run releases: its final model, an ensemble, or a student; and what output policies need beside it.

release/game-000/member-000.safetensors …   the members of an ensemble, or the student alone
release/game-000/guard.safetensors          the defender's classifier, where the policy is 'memguard'
release/game-000/about.json                 what it is, and its accuracy on the parties' held-out records
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core import rng
from fedsim.core.data.released import encode_rows, random_rows, read_schema
from fedsim.core.errors import InputError
from fedsim.core.files import read_arrays
from fedsim.core.models.weights import load_weights
from fedsim.core.models.zoo import build
from fedsim.core.privacy import memguard
from fedsim.core.privacy.output import Backing, softmax
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy

REFERENCES = 1000
"""Random records whose answers 'hamp' gives in place of the true ones."""


class Ensemble(nn.Module):
    """The mean of its members' probabilities, as logits log p̄; or of their votes, log(n_k / M)."""

    def __init__(self, members: Sequence[nn.Module], votes: bool = False) -> None:
        super().__init__()
        self.members, self.votes = nn.ModuleList(members), votes

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, classes) of features (n, …)."""
        answers = torch.stack([member(x) for member in self.members])  # (M, n, classes)
        if self.votes:
            cast = nn.functional.one_hot(answers.argmax(2), answers.shape[2]).double()
            return cast.mean(0).log()
        return answers.double().softmax(2).mean(0).log()


@dataclass(frozen=True, eq=False)
class Released:
    """A released model: its members, one of them but for an ensemble, each in evaluation mode."""

    members: list[nn.Module]
    folder: Path
    apart: bool

    def module(self, policy: OutputPolicy) -> nn.Module:
        """Return what the policy's answers are made of; under 'votes' its outputs are log shares of votes.

        Raises:
            InputError: the members cannot vote.
        """
        if policy.policy == "votes":
            self._check_votes()
            return Ensemble(self.members, votes=True)
        return self.members[0] if len(self.members) == 1 else Ensemble(self.members)

    def _check_votes(self) -> None:
        if not self.apart:
            raise InputError(
                "policy 'votes' needs models that the parties trained apart: set release = 'ensemble' in the "
                "scenario, with release.of = 'parties', and run it"
            )

    def backing(self, policy: OutputPolicy, run: RunDirectory) -> Backing:
        """Return what the policy needs beside probabilities.

        Raises:
            InputError: it is not there.
        """
        if policy.policy == "votes":
            self._check_votes()
            return Backing(voters=len(self.members))
        if policy.policy == "hamp":
            return Backing(references=self._references(run))
        if policy.policy == "memguard":
            return Backing(guard=_guard(self.folder, len(run.manifest["classes"])))
        return Backing()

    def _references(self, run: RunDirectory) -> np.ndarray:
        """Return the model's answers on random records, (R, classes) float64."""
        schema = read_schema(run.path)
        rows = random_rows(schema, REFERENCES, rng.generator(run.scenario.seed, "random records of HAMP"))
        features = torch.from_numpy(encode_rows(schema, rows))
        with torch.inference_mode():
            return softmax(self.module(OutputPolicy())(features).double().numpy())


def folder_of(run: RunDirectory, game: int) -> Path:
    """Return where the release of a game is kept."""
    return run.path / "release" / f"game-{game:03d}"


def load(run: RunDirectory, game: int = 0) -> Released:
    """Read what a game releases.

    Raises:
        InputError: a file is missing or corrupt, or does not fit the scenario's model.
    """
    folder, settings = folder_of(run, game), run.scenario.release
    paths = sorted(folder.glob("member-*.safetensors"))
    if settings.kind == "final":
        paths = [run.model_path(game, run.released_round(game))]
    if not paths:
        raise InputError(f"{folder} holds no model; finish the run with `fedsim run {run.path} --resume`")
    return Released([_member(run, path) for path in paths], folder, settings.votes)


def _member(run: RunDirectory, path: Path) -> nn.Module:
    module = build(run.scenario.model, tuple(run.manifest["input_shape"]), len(run.manifest["classes"]))
    try:
        load_weights(module, read_arrays(path))
    except ValueError as error:
        raise InputError(f"{path} does not fit the scenario's model: {error}") from error
    return module.eval()


def _guard(folder: Path, classes: int) -> nn.Module:
    path = folder / "guard.safetensors"
    if not path.exists():
        raise InputError(
            "policy 'memguard' needs a classifier that the parties' records trained: set "
            "adversary.output.policy = 'memguard' in the scenario, and run it"
        )
    guard = memguard.untrained_guard(classes)
    load_weights(guard, read_arrays(path))
    return guard.eval()
