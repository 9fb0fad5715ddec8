"""The evaluation of a model on records."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core import ranks
from fedsim.core.data.records import Records
from fedsim.core.models.language import LanguageModel, token_accuracy
from fedsim.core.models.layers import move
from fedsim.core.training import losses


def tensors(records: Records, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return features (n, …) float32 and labels (n,) int64 on ``device``."""
    features = torch.from_numpy(np.ascontiguousarray(records.features, dtype=np.float32))
    labels = torch.from_numpy(np.ascontiguousarray(records.labels, dtype=np.int64))
    return features.to(device), labels.to(device)


def evaluate(module: nn.Module, records: Records, *, device: str = "cpu") -> dict[str, float]:
    """Return accuracy, loss (mean cross-entropy, nats), auc, brier and n of ``module`` on ``records``.

    auc: area under the ROC curve; for more than two classes the mean of the one-against-the-rest areas.
    NaN where a class is absent. brier: see there. All but n are NaN on no records. Of a language model
    accuracy is the share of tokens that it finds the likeliest, and exp of the loss its perplexity.
    """
    if len(records) == 0:
        return {"accuracy": math.nan, "loss": math.nan, "auc": math.nan, "brier": math.nan, "n": 0}
    scores = logits(module, records, device=device)
    right = (scores.argmax(1) == records.labels).mean()
    if isinstance(module, LanguageModel):
        right = token_accuracy(module, tensors(records, device)[0])
    probabilities = np.exp(log_probabilities(scores))
    return {
        "accuracy": float(right),
        "loss": mean_loss(scores, records.labels),
        "auc": auc(probabilities, records.labels),
        "brier": brier(probabilities, records.labels),
        "n": len(records),
    }


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of Σ_c (p_c − 1[label = c])², in [0, 2] (Brier 1950): low where p is right and sure.

    probabilities: (n, k) float64; labels: (n,). It falls with accuracy and with calibration alike, and its
    mean over parties, weighted by records, is that of all records together, which ECE's is not.
    """
    hit = np.arange(probabilities.shape[1]) == labels[:, None]
    return float(((probabilities - hit) ** 2).sum(1).mean())


def mean_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy (nats) of logits (n, k) float64 with labels (n,)."""
    target = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64))
    return float(losses.per_record(torch.from_numpy(scores), target).numpy().mean())


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Return the log-softmax (n, k) of logits (n, k) float64."""
    return torch.log_softmax(torch.from_numpy(scores), 1).numpy()


def logits(module: nn.Module, records: Records, *, device: str = "cpu", batch: int = 4096) -> np.ndarray:
    """Return the module's logits (n, k) float64 on ``records``, in evaluation mode."""
    training = module.training
    move(module, device)
    if training:
        module.eval()
    features, _ = tensors(records, device)
    with torch.no_grad():
        if len(features) <= batch:
            scores = module(features)
        else:
            scores = torch.cat([module(x).cpu() for x in features.split(batch)])
    if training:
        module.train()
    return scores.cpu().double().numpy()


def auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the ROC AUC of class probabilities (n, k) for labels (n,); see `evaluate`."""
    k = probabilities.shape[1]
    present = np.bincount(labels, minlength=k).all()
    if k < 2 or not present or not np.isfinite(probabilities).all():
        return math.nan
    if k == 2:
        return ranks.auc(probabilities[labels == 1, 1], probabilities[labels != 1, 1])
    return float(
        np.mean([ranks.auc(probabilities[labels == c, c], probabilities[labels != c, c]) for c in range(k)])
    )
