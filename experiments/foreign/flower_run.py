"""A federation of four clinics in plain Flower, without fedsim; the global model saved after every round.

    pip install 'flwr[simulation]'
    cd experiments/foreign
    python flower_run.py saved/flower
    fedsim attack --models saved/flower/models --model net:make --records saved/flower/records.csv \
        --id id --members saved/flower/members.csv --label malignant --party clinic --adversary north \
        --scenario clinics.toml

The server saves as Flower's guide 'Save and load model checkpoints' does: a state_dict with torch.save, in
the strategy's evaluate_fn, of every round, w_0 included.
"""

from __future__ import annotations

import sys
from pathlib import Path

import net
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

ROUNDS, EPOCHS = 10, 5

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    clinic = net.CLINICS[int(context.node_config["partition-id"])]
    frame = net.table()
    frame = frame[frame["clinic"] == clinic]
    model = net.make((30,), 2)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    net.train(model, frame, EPOCHS, seed=int(message.content["config"]["server-round"]))
    examples = MetricRecord({"num-examples": int(frame["trains"].sum())})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": examples}), reply_to=message
    )


@server.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(sys.argv[1]) / "models"
    folder.mkdir(parents=True, exist_ok=True)

    def save(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        torch.save(arrays.to_torch_state_dict(), folder / f"round-{server_round:03d}.pt")
        return MetricRecord()

    torch.manual_seed(0)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=4, min_available_nodes=4)
    initial = ArrayRecord(net.make((30,), 2).state_dict())
    strategy.start(grid, initial, num_rounds=ROUNDS, evaluate_fn=save)


if __name__ == "__main__":
    net.write_tables(Path(sys.argv[1]), net.table())
    run_simulation(server, client, num_supernodes=len(net.CLINICS))
