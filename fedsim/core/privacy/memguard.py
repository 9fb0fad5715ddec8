"""MemGuard (Jia et al. 2019): answers that a membership classifier takes for those of a coin.

The defender trains a classifier g of its own on answers about members and others (`train_guard`). Phase I
(algorithm 1 of the paper) looks for noise, in the space of logits, that takes g to the other side of ½, keeps
the likeliest class, and is small; phase II adds it with the probability that spends the budget of distortion
in expectation. There is no guarantee: an attack that g does not stand for is not kept out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining

MODEL = ModelSettings(hidden=[32])
TRAINING = TrainingSettings(optimizer="adam", lr=0.01, batch=64, epochs=60)

STEPS, RATE = 100, 0.1
KEEPS_CLASS = 10.0
"""c₂, weight of the loss that keeps the likeliest class."""
CLOSENESS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""c₃, weights of the distortion that are tried one after the other; the last that succeeds counts."""
SMALLEST = 1e-12


def untrained_guard(classes: int, seed: int = 0) -> nn.Module:
    """Return a classifier of sorted answers (n, classes) as logits (n, 2): other, member."""
    return zoo.build(MODEL, (classes,), 2, seed)


def train_guard(members: np.ndarray, others: np.ndarray, seed: int) -> nn.Module:
    """Return the defender's classifier, trained on probabilities (n, classes) of members and of others."""
    answers = _ranked(np.concatenate([members, others]))
    labels = np.repeat([1, 0], [len(members), len(others)])
    guard = untrained_guard(members.shape[1], seed)
    draws = PartyDraws(torch.Generator().manual_seed(seed), None)
    sgd.train(guard, Records(answers.astype(np.float32), labels), LocalTraining(TRAINING), draws)
    return guard.eval()


def guarded(p: np.ndarray, guard: nn.Module, distortion: float, coins: np.ndarray) -> np.ndarray:
    """Return answers (n, classes) float64 of probabilities p, whose likeliest classes stay.

    distortion: bound on the expected ℓ₁ distance of an answer from p, ε of the paper
    coins: (n,), uniform on [0, 1): whether the noise is added
    """
    changed, found = _phase_one(p, guard)
    before, after = np.abs(_odds(guard, p)), np.abs(_odds(guard, changed))
    distance = np.abs(changed - p).sum(axis=1)
    with np.errstate(divide="ignore"):
        share = np.where(
            found & (after < before), np.minimum(distortion / np.maximum(distance, SMALLEST), 1), 0
        )
    return np.where((coins < share)[:, None], changed, p)


def _phase_one(p: np.ndarray, guard: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return changed answers (n, classes), and where any were found (n,) bool."""
    best, found = p.copy(), np.zeros(len(p), dtype=bool)
    going = np.isfinite(p).all(axis=1)
    for closeness in CLOSENESS:
        rows = np.flatnonzero(going)
        if not len(rows):
            break
        changed, success = _descend(p[rows], guard, closeness)
        best[rows[success]], found[rows[success]] = changed[success], True
        going[rows[~success]] = False
    return best, found


def _descend(p: np.ndarray, guard: nn.Module, closeness: float) -> tuple[np.ndarray, np.ndarray]:
    """Follow the normalised slope of the three losses until g has changed sides; see `_phase_one`."""
    start = torch.from_numpy(p)
    z = start.clamp_min(SMALLEST).log()
    top = start.argmax(1, keepdim=True)
    side = _logit(guard, start).sign()
    noise = torch.zeros_like(z)
    done = torch.zeros(len(z), dtype=torch.bool)
    result = start.clone()
    for _ in range(STEPS):
        moved = noise.clone().requires_grad_()
        answer = (z + moved).softmax(1)
        odds = _logit(guard, answer)
        rest = (z + moved).scatter(1, top, -torch.inf).amax(1)
        kept = torch.relu(rest - (z + moved).gather(1, top).squeeze(1))
        loss = odds.abs() + KEEPS_CLASS * kept + closeness * (answer - start).abs().sum(1)
        (slope,) = torch.autograd.grad(loss.sum(), moved)
        length = slope.norm(dim=1, keepdim=True)
        noise = torch.where(
            done[:, None] | (length == 0), noise, noise - RATE * slope / length.clamp_min(SMALLEST)
        )
        answer = (z + noise).softmax(1)
        success = (_logit(guard, answer).sign() * side <= 0) & (
            answer.argmax(1, keepdim=True) == top
        ).squeeze(1)
        fresh = success & ~done
        result[fresh] = answer[fresh].detach()
        done |= success
        if done.all():
            break
    return result.numpy(), done.numpy()


def _logit(guard: nn.Module, answers: Tensor) -> Tensor:
    """Return h, the log-odds of 'member' that g gives answers (n, classes), (n,) float64."""
    ranked = answers.sort(1, descending=True).values.float()
    z = guard(ranked).double()
    return z[:, 1] - z[:, 0]


def _odds(guard: nn.Module, p: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(_logit(guard, torch.from_numpy(p)).numpy())


def _ranked(p: np.ndarray) -> np.ndarray:
    return -np.sort(-p, axis=1)
