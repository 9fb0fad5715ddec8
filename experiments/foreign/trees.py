"""A random forest and XGBoost as an outsider meets them: it asks, and is told probabilities.

    pip install 'fedsim[serve]' xgboost
    cd experiments/foreign
    python trees.py saved/trees
    fedsim attack --predict trees:forest --label malignant --candidates saved/trees/candidates.csv \
        --known-outsiders saved/trees/outsiders.csv --truth trained

`--predict` names a function of features (n, d) that returns probabilities (n, classes). It is your code, so
that fedsim need not load a pickle; here it trains when it is first asked. `trees:boosted` is XGBoost.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import net
import numpy as np
from sklearn.ensemble import RandomForestClassifier

OUTSIDERS = 100


def forest(features: np.ndarray) -> np.ndarray:
    """Answer as a random forest."""
    return np.asarray(_forest().predict_proba(features))


def boosted(features: np.ndarray) -> np.ndarray:
    """Answer as XGBoost."""
    return np.asarray(_boosted().predict_proba(features))


@lru_cache(maxsize=1)
def _forest() -> Any:
    features, labels = net.tensors(net.table())
    return RandomForestClassifier(100, random_state=0).fit(features.numpy(), labels.numpy())


@lru_cache(maxsize=1)
def _boosted() -> Any:
    from xgboost import XGBClassifier

    features, labels = net.tensors(net.table())
    return XGBClassifier(n_estimators=100, random_state=0).fit(features.numpy(), labels.numpy())


def main(folder: Path) -> None:
    """Write whom the outsider asks about, and a hundred people whom it knows not to be in the data."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = net.table().drop(columns=["id", "clinic"]).rename(columns={"trains": "trained"})
    others = frame[~frame["trained"]].iloc[:OUTSIDERS]
    others.drop(columns="trained").to_csv(folder / "outsiders.csv", index=False)
    frame.drop(index=others.index).to_csv(folder / "candidates.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
