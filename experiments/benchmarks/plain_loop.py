"""The floor under every engine: the same federated averaging as a plain PyTorch loop, without any federation.

    python experiments/benchmarks/plain_loop.py RUN --rounds 50 --evaluate

RUN is the folder of a run with plain SGD, on whose parties' records it trains. Prints, as JSON, the seconds
of a steady round (the median after the fifth) and the final model's mean held-out loss. No messages, no
ledgers, nothing kept: what a round costs beyond this is the price of the engine.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click
import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from fedsim.core.data.store import PartyRecords, read_party
from fedsim.core.models import zoo
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.training import TrainingSettings

Weights = dict[str, Tensor]


def train(module: nn.Module, records: PartyRecords, settings: TrainingSettings) -> None:
    """One round of a party's local SGD."""
    optimizer = torch.optim.SGD(module.parameters(), settings.lr, settings.momentum, weight_decay=settings.l2)
    features, labels = torch.from_numpy(records.train.features), torch.from_numpy(records.train.labels)
    module.train()
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(labels)).split(settings.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(features[rows]), labels[rows]).backward()
            optimizer.step()


@torch.no_grad()
def measure(module: nn.Module, records: PartyRecords) -> dict[str, float]:
    """Return loss, accuracy, Brier score and AUC of a model of two classes on a party's held-out records."""
    module.eval()
    features, labels = torch.from_numpy(records.heldout.features), torch.from_numpy(records.heldout.labels)
    logits = module(features)
    probabilities = logits.softmax(1)
    hit = nn.functional.one_hot(labels, logits.shape[1])
    return {
        "loss": float(nn.functional.cross_entropy(logits, labels)),
        "accuracy": float((logits.argmax(1) == labels).float().mean()),
        "brier": float((probabilities - hit).square().sum(1).mean()),
        "auc": auc(probabilities[:, 1].numpy(), labels.numpy() == 1),
    }


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the ROC AUC by ranks: a twentieth of what scikit-learn takes for so few records."""
    ranks, n = rankdata(score), int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def one_round(
    module: nn.Module, weights: Weights, parties: list[PartyRecords], settings: TrainingSettings
) -> Weights:
    """Train every party from ``weights`` and return the mean, weighted by records."""
    total = sum(len(records.train) for records in parties)
    mean = {name: torch.zeros_like(value) for name, value in weights.items()}
    for records in parties:
        module.load_state_dict(weights)
        train(module, records, settings)
        for name, value in module.state_dict().items():
            mean[name] += value * (len(records.train) / total)
    return mean


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", required=True, type=int)
@click.option("--evaluate", is_flag=True, help="Measure the model at every party after every round.")
def main(folder: Path, rounds: int, evaluate: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = RunDirectory.open(folder)
    parties = [read_party(path)[0] for path in sorted((run.path / "parties" / "game-000").iterdir())]
    module = zoo.build(run.scenario.model, parties[0].train.shape, len(run.manifest["classes"]))
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        weights = one_round(module, weights, parties, run.scenario.training)
        if evaluate:
            module.load_state_dict(weights)
            for records in parties:
                measure(module, records)
        seconds.append(time.perf_counter() - started)
    module.load_state_dict(weights)
    loss = statistics.mean(measure(module, records)["loss"] for records in parties)
    print(json.dumps({"steady": statistics.median(seconds[5:] or seconds), "loss": loss}))


if __name__ == "__main__":
    main()
