"""Exposure of numbers (Carlini et al. 2019): how far up the list of all numbers a model puts the true one.

A secret is a number of D digits behind a prefix that the adversary knows. Its rank is that of its likelihood
among all R numbers that are possible, and its exposure log₂ R − log₂ rank, in bits: 1 on average for a secret
that was never seen, log₂ R where the model names it first. Ranks among billions are estimated by importance
sampling, or by a skew-normal fit of log-likelihoods (§4.3 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.core.models.language import LanguageModel, State


@dataclass(frozen=True)
class Numbers:
    """What every adversary knows of the secrets.

    digits: (10,) int64, the token ids of 0 … 9
    length: D; checked: whether the last digit follows from the others by Luhn's rule
    """

    digits: np.ndarray
    length: int
    checked: bool

    @property
    def free(self) -> int:
        """Digits that may be anything."""
        return self.length - self.checked

    @property
    def bits(self) -> float:
        """log₂ R."""
        return float(self.free * np.log2(10))


def check_digits(numbers: np.ndarray) -> np.ndarray:
    """Return Luhn's digit (n,) of numbers (n, D) (ISO/IEC 7812-1)."""
    doubled = numbers.copy()
    doubled[:, ::-2] = 2 * doubled[:, ::-2]
    doubled -= 9 * (doubled > 9)
    return np.asarray(-doubled.sum(1) % 10)


@torch.no_grad()
def exposures(
    model: LanguageModel,
    prefix: np.ndarray,
    secrets: np.ndarray,
    numbers: Numbers,
    samples: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exposures (n,) in bits of secrets behind one prefix, by sampling and by the skew-normal fit.

    prefix: (S,) token ids; secrets: (n, D) digits. Half of the samples follow the model, the others are
    uniform: q = ½ p(free digits) + ½ 10^−free, and the rank is the mean of 1[p(x) ≥ p(s)] / q(x). The secret
    itself counts as one sample more: with no hit at all the rank is not nought.
    """
    start = torch.from_numpy(prefix).long()[None]
    logs, free_logs = _draw(model, start, numbers, samples, rng)
    of_secret, free_of_secret = likelihoods(model, start, secrets, numbers)
    uniform = -numbers.free * np.log(10)
    weights = np.exp(-np.logaddexp(free_logs + np.log(0.5), uniform + np.log(0.5)))
    own = np.exp(-np.logaddexp(free_of_secret + np.log(0.5), uniform + np.log(0.5)))
    ahead = logs[None] >= of_secret[:, None]  # (n, samples)
    rank = ((ahead * weights).sum(1) + own) / (samples + 1)
    by_sampling = numbers.bits - np.log2(np.clip(rank, 1, 10.0**numbers.free))
    return by_sampling, skew_normal(logs[samples // 2 :], of_secret, numbers.bits)


def skew_normal(of_numbers: np.ndarray, of_secrets: np.ndarray, bits: float) -> np.ndarray:
    """Return −log₂ P(a number is at least as likely), (n,), by a skew-normal fit of log-likelihoods.

    of_numbers: (k,) log-likelihoods of uniform numbers; fitted by moments (Carlini et al. 2019, §4.3, fit by
    maximum likelihood). At most ``bits``.
    """
    from scipy.stats import skew, skewnorm

    largest = 0.99  # the skewness of a skew-normal distribution is below .995
    gamma = float(np.clip(skew(of_numbers), -largest, largest))
    cubed = abs(gamma) ** (2 / 3)
    delta = np.sign(gamma) * np.sqrt(np.pi / 2 * cubed / (cubed + ((4 - np.pi) / 2) ** (2 / 3)))
    scale = max(float(of_numbers.std()), 1e-9) / np.sqrt(1 - 2 * delta**2 / np.pi)
    location = of_numbers.mean() - scale * delta * np.sqrt(2 / np.pi)
    tail = skewnorm.logsf(of_secrets, delta / np.sqrt(max(1 - delta**2, 1e-9)), location, scale)
    return np.clip(-tail / np.log(2), 0, bits)


def _draw(
    model: LanguageModel, start: Tensor, numbers: Numbers, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw numbers, half of them from the model; return log p of all digits and of the free ones."""
    uniform = np.arange(samples) >= samples // 2
    drawn = np.zeros((samples, numbers.length), dtype=np.int64)
    logs = np.zeros(samples)
    free_logs = np.zeros(samples)
    log_p, state = _digits(*model.next(start), numbers)
    log_p, state = log_p.repeat(samples, 0), _repeated(state, samples)
    for place in range(numbers.length):
        if place < numbers.free:
            gumbel = -np.log(-np.log(rng.random((samples, 10)) + 1e-300) + 1e-300)
            drawn[:, place] = np.where(uniform[:, None], gumbel, log_p + gumbel).argmax(1)
        else:
            drawn[:, place] = check_digits(drawn[:, :place])
        step = log_p[np.arange(samples), drawn[:, place]]
        logs += step
        free_logs += step * (place < numbers.free)
        if place + 1 < numbers.length:
            ids = torch.from_numpy(numbers.digits[drawn[:, place]])[:, None]
            log_p, state = _digits(*model.next(ids, state), numbers)
    return logs, free_logs


@torch.no_grad()
def likelihoods(
    model: LanguageModel, start: Tensor, secrets: np.ndarray, numbers: Numbers
) -> tuple[np.ndarray, np.ndarray]:
    """Return log p of numbers (n, D) among digits alone, all of them and the free ones, (n,) each."""
    ids = torch.from_numpy(numbers.digits[secrets])
    whole = torch.cat([start.expand(len(ids), -1), ids], 1)
    hidden = model.hidden(whole[:, :-1])[0][:, start.shape[1] - 1 :]
    logits = model.output(hidden)[:, :, torch.from_numpy(numbers.digits)]  # (n, D, 10)
    steps = logits.log_softmax(2).double().numpy()
    steps = np.take_along_axis(steps, secrets[:, :, None], 2)[:, :, 0]
    return steps.sum(1), steps[:, : numbers.free].sum(1)


def _digits(log_p: Tensor, state: State, numbers: Numbers) -> tuple[np.ndarray, State]:
    """Return log p of the ten digits (B, 10) float64, of which one must follow."""
    return log_p[:, torch.from_numpy(numbers.digits)].log_softmax(1).double().numpy(), state


def _repeated(state: State, samples: int) -> State:
    return [(h.repeat_interleave(samples, 0), c.repeat_interleave(samples, 0)) for h, c in state]


def known_numbers(digits: Sequence[int], secrets: np.ndarray) -> Numbers:
    """Return what the form of secrets (n, D) tells: their length, and whether Luhn's rule holds in all."""
    checked = secrets.shape[1] > 1 and bool((check_digits(secrets[:, :-1]) == secrets[:, -1]).all())
    return Numbers(np.asarray(digits, dtype=np.int64), secrets.shape[1], checked)
