"""The last global model of four clinics as NVFlare's server leaves it: FL_global_model.pt.

    cd experiments/foreign
    python nvflare_export.py saved/nvflare
    fedsim attack --models saved/nvflare/FL_global_model.pt --model net:make \
        --records saved/nvflare/records.csv --id id --members saved/nvflare/members.csv --label malignant \
        --party clinic --adversary north --scenario clinics.toml

NVFlare need not be installed: the training is a FedAvg of twenty lines, and the file is written as NVFlare's
`PTFileModelPersistor` writes it. Checked against nvflare/app_opt/pt/model_persistence_format_manager.py and
file_model_persistor.py of NVIDIA/NVFlare: torch.save of an OrderedDict with 'model', the state_dict as
tensors by name, and 'train_conf', {'train': {'model': the module's class}}. The best model of the run, which
NVFlare keeps beside it, has the same form. A run saves these two, no model of every round.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import net
import torch

ROUNDS, EPOCHS = 10, 5


def federate() -> OrderedDict[str, torch.Tensor]:
    """FedAvg: the clinics' models, weighted by their records."""
    frame = net.table()
    torch.manual_seed(0)
    model = net.make((30,), 2)
    weights = OrderedDict(model.state_dict())
    for t in range(1, ROUNDS + 1):
        answers, sizes = [], []
        for clinic in net.CLINICS:
            model.load_state_dict(weights)
            own = frame[frame["clinic"] == clinic]
            net.train(model, own, EPOCHS, seed=t)
            answers.append({name: value.clone() for name, value in model.state_dict().items()})
            sizes.append(int(own["trains"].sum()))
        share = torch.tensor(sizes) / sum(sizes)
        weights = OrderedDict(
            (name, sum(s * answer[name] for s, answer in zip(share, answers, strict=True)))
            for name in weights
        )
    return weights


def main(folder: Path) -> None:
    net.write_tables(folder, net.table())
    persisted: OrderedDict[str, object] = OrderedDict()
    persisted["model"] = federate()
    persisted["train_conf"] = {"train": {"model": "Sequential"}}
    torch.save(persisted, folder / "FL_global_model.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
