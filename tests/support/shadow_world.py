"""Signals drawn from a model that is known: what the attacks estimate from shadows, a test can compute.

φ of record i at the R rounds is N(mean_i, covariance_i) in a model that did not train on it, and shifted by
difference_i in one that did.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attacks.matrix.signal_matrix import SignalMatrix


@dataclass(frozen=True)
class World:
    """mean, difference: (n, R); covariance: (n, R, R)."""

    mean: np.ndarray
    difference: np.ndarray
    covariance: np.ndarray

    def phi(self, member: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        """(S, R, n) float32 of S models with these members, (S, n) bool."""
        root = np.linalg.cholesky(self.covariance)
        noise = stream.normal(size=(*member.shape, self.mean.shape[1]))
        values = self.mean + member[..., None] * self.difference + np.einsum("nij,snj->sni", root, noise)
        return values.transpose(0, 2, 1).astype(np.float32)

    def matrix(
        self, shadows: int, stream: np.random.Generator, share: float = 0.5
    ) -> tuple[SignalMatrix, np.ndarray]:
        """Shadows and a target whose members are drawn with probability ``share``; who the target's are."""
        member = stream.random((shadows + 1, len(self.mean))) < share
        phi = self.phi(member, stream)
        n, rounds = self.mean.shape
        return SignalMatrix(
            target=phi[0],
            shadows=phi[1:],
            inside=np.where(member[1:], 0, -1).astype(np.int8),
            rounds=np.arange(1, rounds + 1),
            labels=stream.integers(0, 2, n),
            party=np.zeros(n, dtype=np.int8),
        ), member[0]


def alike(n: int, rounds: int = 1, distance: float = 1.0, correlation: float = 0.5) -> World:
    """Records that differ in their means only; at the last round members lie ``distance`` deviations away."""
    difference = np.zeros((n, rounds))
    difference[:, -1] = distance
    covariance = np.full((rounds, rounds), correlation) + (1 - correlation) * np.eye(rounds)
    mean = np.linspace(-3, 3, n)[:, None] + np.zeros((n, rounds))
    return World(mean, difference, np.broadcast_to(covariance, (n, rounds, rounds)))


def varied(n: int, rounds: int, stream: np.random.Generator) -> World:
    """Records with means, differences, variances and correlations of their own."""
    deviation = np.exp(stream.normal(size=(n, rounds)) / 2)
    factor = stream.normal(size=(n, rounds, rounds + 2))
    product = factor @ factor.transpose(0, 2, 1) + np.eye(rounds)
    scale = deviation / np.sqrt(np.einsum("nii->ni", product))
    return World(
        mean=2 * stream.normal(size=(n, rounds)),
        difference=deviation * (0.7 + 0.5 * stream.normal(size=(n, rounds))),
        covariance=product * scale[:, :, None] * scale[:, None, :],
    )


def rehearsal(matrix: SignalMatrix, j: int) -> tuple[SignalMatrix, np.ndarray]:
    """The matrix of all other shadows with shadow ``j`` as its target, and who its members are."""
    others = matrix.subset(np.arange(len(matrix)) != j)
    return replace(others, target=matrix.shadows[j]), matrix.member[j]


def published() -> tuple[SignalMatrix, dict[str, Any]]:
    """Signals, and other implementations' scores of them (the file names them and their versions)."""
    known = json.loads((Path(__file__).parent / "reference_scores.json").read_text(encoding="utf-8"))
    member = np.array([[int(bit) for bit in row] for row in known["member"]])
    n = member.shape[1]
    return SignalMatrix(
        target=np.array([known["target"]]),
        shadows=np.array(known["phi"])[:, None, :],
        inside=(member - 1).astype(np.int8),
        rounds=np.array([1]),
        labels=np.zeros(n, dtype=np.int64),
        party=np.zeros(n, dtype=np.int8),
    ), known


def auc(scores: np.ndarray, member: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(member, scores))
