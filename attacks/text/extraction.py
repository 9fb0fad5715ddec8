"""Letting a language model write: what comes out verbatim of letters that only others hold.

`Policy` is what an outsider can ask of a released model; a participant holds the model and needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.core.data.text import BEGIN
from fedsim.core.models.language import LanguageModel


@dataclass(frozen=True)
class Policy:
    """How tokens are drawn. temperature: of the softmax, 0 takes the likeliest; top_k: of these alone."""

    temperature: float = 1.0
    top_k: int = 0


GREEDY = Policy(temperature=0.0)


@torch.no_grad()
def write(
    model: LanguageModel,
    prompts: Sequence[np.ndarray],
    tokens: int,
    rng: np.random.Generator,
    policy: Policy = GREEDY,
) -> np.ndarray:
    """Return what follows each prompt, (n, tokens) int64; prompts: token ids (S,) that begin with BEGIN.

    Prompts of one length are continued together. A GPT reads at most as many tokens as a letter has: what
    would be longer is padding.
    """
    written = np.full((len(prompts), tokens), model.vocabulary - 1, dtype=np.int64)
    lengths = np.array([len(prompt) for prompt in prompts])
    room = longest(model)
    for length in sorted(set(lengths.tolist())):
        rows = np.flatnonzero(lengths == length)
        ids = torch.from_numpy(np.stack([prompts[int(row)] for row in rows])).long()
        log_p, state = model.next(ids)
        for place in range(min(tokens, room - length)):
            chosen = _choose(log_p.double().numpy(), policy, rng)
            written[rows, place] = chosen
            if place + 1 < min(tokens, room - length):
                log_p, state = model.next(torch.from_numpy(chosen)[:, None], state)
    return written


def longest(model: LanguageModel) -> int:
    """Return how many tokens the model can read."""
    position = getattr(model, "position", None)
    return 1 << 20 if position is None else int(position.num_embeddings)


def _choose(log_p: np.ndarray, policy: Policy, rng: np.random.Generator) -> np.ndarray:
    log_p = log_p.copy()
    log_p[:, [BEGIN, log_p.shape[1] - 1]] = -np.inf
    if policy.top_k:
        kth = np.sort(log_p, axis=1)[:, -min(policy.top_k, log_p.shape[1]), None]
        log_p[log_p < kth] = -np.inf
    if policy.temperature == 0:
        return np.asarray(log_p.argmax(1))
    gumbel = -np.log(-np.log(rng.random(log_p.shape) + 1e-300) + 1e-300)
    return np.asarray((log_p / policy.temperature + gumbel).argmax(1))


@torch.no_grad()
def probability(model: LanguageModel, prompt: np.ndarray, answer: np.ndarray) -> float:
    """Return the probability that a draw at temperature 1 continues ``prompt`` with ``answer``."""
    ids = torch.from_numpy(np.concatenate([prompt, answer])).long()[None]
    logs = model.output(model.hidden(ids[:, :-1])[0]).log_softmax(2)[0, len(prompt) - 1 :]
    return float(logs.gather(1, ids[0, len(prompt) :, None]).double().sum().exp())


def discoverable(p: float, draws: int) -> float:
    """Return the chance that an answer of probability p comes out in this many draws, 1 − (1 − p)^n.

    A text is (n, q)-discoverable where this is at least q (Hayes et al. 2025, definition 1).
    """
    return float(-np.expm1(draws * np.log1p(-min(p, 1 - 1e-16))))
