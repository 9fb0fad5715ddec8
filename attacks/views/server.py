"""What the server saw: every party's answer of every round, or only their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks.views.observations import read_rounds
from attacks.views.settings import PublicSettings, Weights
from fedsim.core.errors import InputError
from fedsim.core.files import read_arrays, write_arrays


@dataclass(frozen=True, eq=False)
class ServerView:
    """What the server saw: w_t, and in each round what it was sent.

    models: t → w_t, of every round. One of the next two is empty:
    answers: round t → partition id → the model that this party answered, trained from w_{t−1}
    sums: round t → the answers' mean, weighted by records; all that secure aggregation reveals
    candidate_party: (n,) int64, index of each candidate's party, −1 where it is not told
    victims: partition ids that a candidate can be of
    """

    settings: PublicSettings
    models: dict[int, Weights]
    answers: dict[int, dict[int, Weights]]
    sums: dict[int, Weights]
    candidate_party: np.ndarray
    victims: tuple[int, ...]


def record_answer(folder: Path, round: int, partition: int, weights: Mapping[str, np.ndarray]) -> None:
    """Write what party ``partition`` answered the server in ``round`` (1..T)."""
    write_arrays(folder / f"answer-{round:03d}-{partition:03d}.safetensors", weights)


def record_sum(folder: Path, round: int, answers: Sequence[Weights], sizes: Sequence[float]) -> None:
    """Write the mean of the parties' ``answers``, weighted by ``sizes``, and nothing else of them."""
    mean = {
        name: np.average([answer[name] for answer in answers], axis=0, weights=sizes).astype(np.float32)
        for name in answers[0]
    }
    write_arrays(folder / f"sum-{round:03d}.safetensors", mean)


def load_server_view(
    folder: Path,
    settings: PublicSettings,
    models: dict[int, Weights],
    candidate_party: np.ndarray,
    victims: Sequence[int],
) -> ServerView:
    """Read what the server kept in ``folder``; the other arguments are those of the view.

    Raises:
        InputError: nothing was kept, or a file is corrupt.
    """
    answers: dict[int, dict[int, Weights]] = {}
    for file in sorted(folder.glob("answer-*.safetensors")):
        t, partition = map(int, file.stem.split("-")[1:])
        answers.setdefault(t, {})[partition] = read_arrays(file)
    sums = read_rounds(folder, "sum")
    if not answers and not sums:
        raise InputError(f"{folder}: nothing was kept; observer 'server' must be named before the run")
    return ServerView(settings, models, answers, sums, candidate_party, tuple(victims))
