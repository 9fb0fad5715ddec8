"""What the examples share: the architecture, the records as the model takes them, an epoch of training.

Nothing here is fedsim's: it stands for the code that you have. 569 biopsies (Wisconsin breast cancer, in
scikit-learn), scaled by the training's own means, dealt to four clinics; every second record trains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

CLINICS = ("north", "east", "south", "west")


def make(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the architecture; fedsim calls it so, and loads the saved weights into it."""
    return nn.Sequential(nn.Linear(input_shape[0], 64), nn.ReLU(), nn.Linear(64, classes))


def table(seed: int = 0) -> pd.DataFrame:
    """Return the records: id, 30 scaled features, label, clinic, and whether a clinic trains on it."""
    loaded = load_breast_cancer(as_frame=True)
    stream = np.random.default_rng(seed)
    features = loaded.data
    trains = np.zeros(len(features), dtype=bool)
    trains[stream.permutation(len(features))[: len(features) // 2]] = True
    scaled = (features - features[trains].mean()) / features[trains].std()
    clinic = stream.choice(CLINICS, len(features))
    frame = scaled.round(6).assign(malignant=1 - loaded.target, clinic=clinic, trains=trains)
    return frame.rename_axis("id").reset_index()


def tensors(frame: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (n, 30) float32 and labels (n,) int64 of the records that train."""
    used = frame[frame["trains"]]
    features = used.drop(columns=["id", "malignant", "clinic", "trains"])
    return torch.tensor(features.to_numpy(np.float32)), torch.tensor(used["malignant"].to_numpy())


def train(model: nn.Module, frame: pd.DataFrame, epochs: int, seed: int, lr: float = 0.1) -> None:
    """Plain SGD, batches of 16, in place."""
    features, labels = tensors(frame)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    stream = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=stream).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features[rows]), labels[rows]).backward()
            optimizer.step()


def write_tables(folder: Path, frame: pd.DataFrame) -> None:
    """Write what `fedsim attack` asks for: all records, and the ids of those that were trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.drop(columns="trains").to_csv(folder / "records.csv", index=False)
    frame.loc[frame["trains"], ["id"]].to_csv(folder / "members.csv", index=False)
