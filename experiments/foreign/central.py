"""One central model, no federation: trained in plain PyTorch, saved as a state_dict.

    cd experiments/foreign
    python central.py saved/central
    fedsim attack --models saved/central/model.pt --model net:make --records saved/central/records.csv \
        --id id --members saved/central/members.csv --label malignant --set 'data.ignore=["clinic"]' \
        --scenario central.toml
"""

from __future__ import annotations

import sys
from pathlib import Path

import net
import torch

EPOCHS = 100


def main(folder: Path) -> None:
    frame = net.table()
    torch.manual_seed(0)
    model = net.make((30,), 2)
    net.train(model, frame, EPOCHS, seed=0)
    net.write_tables(folder, frame)
    torch.save(model.state_dict(), folder / "model.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
