"""Membership of letters, from how likely a language model finds their tokens. Higher = member."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np

from attacks.declaration import FINAL_MODEL, FITTED, attack
from attacks.views.participant import ParticipantView
from attacks.views.settings import Weights
from fedsim.core.data.records import Records
from fedsim.core.data.text import BEGIN, Vocabulary

if TYPE_CHECKING:
    from fedsim.core.models.language import LanguageModel

LETTERS = "letters"
LOWEST = 0.2
"""Share of a letter's tokens that Min-K % looks at, the least likely ones (Shi et al. 2024, §4)."""

NEIGHBOURS, REPLACED = 8, 0.1
"""Neighbours of a letter, and the share of its tokens that is replaced in one."""

AT_A_TIME = 64
"""Letters whose predictions are held at once."""


def tokens_of(view: ParticipantView, weights: Weights, letters: Records) -> tuple[np.ndarray, ...]:
    """Return of each token −log p, and mean and deviation of log p, (n, T − 1) float64, NaN for padding."""
    import torch

    from fedsim.core.models.language import token_nats

    module = _model(view, weights)
    with torch.no_grad():
        measured = token_nats(module, torch.from_numpy(letters.features.astype(np.int64)))
    return tuple(part.double().numpy() for part in measured)


def _model(view: ParticipantView, weights: Weights) -> LanguageModel:
    return cast("LanguageModel", view.module(weights))


@attack("zlib", needs=LETTERS, sees=FINAL_MODEL, assumes=FITTED, source="Carlini et al. 2021", reads="text")
def zlib_ratio(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return −(nats of the letter) / (bytes that zlib packs it into), (n,) (Carlini et al. 2021, §5.1).

    A letter that is easy for everyone packs well, and counts less.
    """
    nats, _, _ = tokens_of(view, view.final_model, candidates)
    vocabulary = Vocabulary(view.settings.vocabulary)
    packed = [len(zlib.compress(vocabulary.decode(ids).encode())) for ids in candidates.features]
    return -np.nanmean(nats, axis=1) / np.array(packed)


@attack(
    "reference", needs=LETTERS, sees="w_0 and the final model", assumes=FITTED, source="Carlini et al. 2021",
    reads="text",
)  # fmt: skip
def reference(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return by how many nats a token w_T finds the letter likelier than w_0, (n,) (Carlini et al. 2021).

    w_0, trained on public letters or not at all, is the reference model of what every letter is like.
    """
    before, _, _ = tokens_of(view, view.initial, candidates)
    after, _, _ = tokens_of(view, view.final_model, candidates)
    return np.nanmean(before - after, axis=1)


@attack("min-k", needs=LETTERS, sees=FINAL_MODEL, assumes=FITTED, source="Shi et al. 2024", reads="text")
def min_k(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean log p of a letter's 20 % least likely tokens, (n,) (Shi et al. 2024, eq. 1)."""
    nats, _, _ = tokens_of(view, view.final_model, candidates)
    return lowest_mean(-nats, LOWEST)


@attack("min-k++", needs=LETTERS, sees=FINAL_MODEL, assumes=FITTED, source="Zhang et al. 2025", reads="text")
def min_k_plus(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean of (log p − μ) / σ over the 20 % of tokens where it is least, (n,).

    μ and σ are those of log p of a next token drawn from the model itself (Zhang et al. 2025, eq. 3 and 4).
    """
    nats, mean, deviation = tokens_of(view, view.final_model, candidates)
    return lowest_mean((-nats - mean) / np.maximum(deviation, 1e-6), LOWEST)


def lowest_mean(values: np.ndarray, share: float) -> np.ndarray:
    """Return the mean of each row's lowest ``share`` of numbers, one at least, (n,); NaN are no numbers."""
    ordered = np.sort(values, axis=1)  # NaN last
    counts = np.maximum(1, (share * (~np.isnan(values)).sum(1)).astype(int))
    within = np.arange(values.shape[1]) < counts[:, None]
    return np.asarray(np.where(within, ordered, 0).sum(1) / counts)


@attack(
    "neighbourhood", needs=LETTERS, sees="w_0 and the final model", assumes=FITTED,
    source="Mattern et al. 2023", reads="text",
)  # fmt: skip
def neighbourhood(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the mean loss of a letter's neighbours less its own, (n,) (Mattern et al. 2023, eq. 3).

    A neighbour has a tenth of the tokens replaced by draws from w_0 in their place, which takes the part of
    the paper's masked language model: w_0 reads only what stands before.
    """
    own = np.nanmean(tokens_of(view, view.final_model, candidates)[0], axis=1)
    total = np.zeros(len(candidates))
    for rows in np.array_split(np.arange(len(candidates)), -(-len(candidates) // AT_A_TIME)):
        for ids in _neighbours(view, candidates.features[rows], rng):
            neighbours = Records(ids, candidates.labels[rows])
            total[rows] += np.nanmean(tokens_of(view, view.final_model, neighbours)[0], axis=1)
    return total / NEIGHBOURS - own


def _neighbours(view: ParticipantView, letters: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield letters (n, T) like these with a share of the tokens after the first drawn from w_0."""
    import torch

    module = _model(view, view.initial)
    with torch.no_grad():
        ids = torch.from_numpy(letters.astype(np.int64))
        logits = module.output(module.hidden(ids[:, :-1])[0])  # (n, T − 1, V)
    logits[:, :, [BEGIN, module.vocabulary - 1]] = -torch.inf
    drawable = (letters != module.vocabulary - 1) & (letters != BEGIN)
    for _ in range(NEIGHBOURS):
        row, place = np.nonzero((rng.random(letters.shape) < REPLACED) & drawable)
        # Gumbel's trick: the maximum of log p + G is a draw from p.
        uniform = rng.random((len(row), module.vocabulary))
        gumbel = -np.log(-np.log(uniform + 1e-300) + 1e-300)
        new = letters.copy()
        new[row, place] = (logits[row, place - 1].double().numpy() + gumbel).argmax(1)
        yield new
