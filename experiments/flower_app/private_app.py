"""Anyone's Flower App with per-party DP-SGD: three clinics, breast cancer, ε over all rounds, a refusal.

Each clinic's ledger lives in its `Context.state`. Clinic 0 allows three quarters of the ε that the plan would
cost, and refuses once that is spent; the others go on without it.
"""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_breast_cancer
from torch import nn

from clients.dp import train_or_refuse
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import TrainingSettings

server = ServerApp()
client = ClientApp()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 2))  # (B, 30) → (B, 2) logits


def records(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = load_breast_cancer(return_X_y=True)
    features = torch.from_numpy(features).log1p().float() / 8  # by no private statistic
    mine = slice(int(context.node_config["partition-id"]), None, int(context.node_config["num-partitions"]))
    return features[mine], torch.from_numpy(labels)[mine]


@client.train()
def train(message: Message, context: Context) -> Message:
    config, (features, labels) = context.run_config, records(context)
    epsilon = float(config["epsilon"])
    budget = 0.75 * epsilon if context.node_config["partition-id"] == 0 else epsilon
    module = net()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    spent = train_or_refuse(
        module, features.numpy(), labels.numpy(), context,
        DPSettings(epsilon=epsilon, budget=budget), TrainingSettings(batch=64, epochs=1, lr=0.5),
        rounds=int(config["rounds"]), seed=int(config["seed"]),
    )  # fmt: skip
    metrics = MetricRecord({"num-examples": len(labels), "epsilon": spent.epsilon})
    return Message(
        RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics}), reply_to=message
    )


@server.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(int(context.run_config["seed"]))
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=3)
    result = strategy.start(grid, ArrayRecord(net().state_dict()), int(context.run_config["rounds"]))
    for number, metrics in result.train_metrics_clientapp.items():
        print(f"round {number}: mean ε of the clinics that trained {metrics['epsilon']:.3f}", flush=True)
