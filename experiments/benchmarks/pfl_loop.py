"""The same federated averaging in pfl (pfl-research, Apple), in one process, for `engines.py`.

    pip install --no-deps pfl multiprocess dill prv-accountant 'dp-accounting<0.6'   # elsewhere
    python experiments/benchmarks/pfl_loop.py RUN --rounds 50

RUN is as for `plain_loop.py`, whose loop without ``--evaluate`` does the same. Prints, as JSON, the seconds
of a steady round and the final model's mean held-out loss.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from fedsim.core.data.store import read_party
from fedsim.core.models import zoo
from fedsim.core.run_directory import RunDirectory


class Classifier(nn.Module):
    """What pfl asks of a module: its loss, and its metrics."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def loss(self, features: Tensor, labels: Tensor, is_eval: bool = False) -> Tensor:
        self.train(not is_eval)
        return nn.functional.cross_entropy(self.module(features), labels)

    @torch.no_grad()
    def metrics(self, features: Tensor, labels: Tensor, eval: bool = True) -> dict[str, Weighted]:
        loss = self.loss(features, labels, is_eval=True)
        return {"loss": Weighted(float(loss) * len(labels), len(labels))}


class Clock(TrainingProcessCallback):
    """Keeps when each round ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ends.append(time.perf_counter())
        return False, Metrics()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", required=True, type=int)
def main(folder: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = RunDirectory.open(folder)
    settings = run.scenario.training
    parties = [read_party(path)[0] for path in sorted((run.path / "parties" / "game-000").iterdir())]
    users = {
        number: [torch.from_numpy(records.train.features), torch.from_numpy(records.train.labels)]
        for number, records in enumerate(parties)
    }
    made = zoo.build(run.scenario.model, parties[0].train.shape, len(run.manifest["classes"]))
    module = Classifier(made)
    server = torch.optim.SGD(module.parameters(), lr=1.0)  # the mean of the updates, as it is
    model = PyTorchModel(model=module, local_optimizer_create=torch.optim.SGD, central_optimizer=server)
    data = FederatedDataset(
        lambda user: Dataset(raw_data=users[user], user_id=str(user)),
        get_user_sampler("minimize_reuse", list(users)),
    )
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds, evaluation_frequency=rounds + 1, train_cohort_size=len(users),
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=settings.epochs, local_learning_rate=settings.lr,
            local_batch_size=settings.batch,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=settings.batch),
        callbacks=[clock],
    )  # fmt: skip
    seconds = [later - earlier for earlier, later in zip(clock.ends, clock.ends[1:], strict=False)]
    held = [
        module.metrics(torch.from_numpy(records.heldout.features), torch.from_numpy(records.heldout.labels))
        for records in parties
    ]
    loss = statistics.mean(found["loss"].overall_value for found in held)
    print(json.dumps({"steady": statistics.median(seconds[5:] or seconds), "loss": loss}))


if __name__ == "__main__":
    main()
