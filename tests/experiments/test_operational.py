"""The study `experiments/studies/operational.py`: its five sentences follow the figures."""

from __future__ import annotations

from types import ModuleType

import pandas as pd
import pytest
from support import studies

from fedsim.evaluation.estimates import Estimate


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return studies.study("operational")


def found() -> pd.DataFrame:
    """Four trainings: DP is best at matched utility, dropout costs more than is matched."""
    cells = [
        ("inf", "none", 0.80, {"first-update": 0.75, "loss": 0.6}, 0.90),
        ("8.0", "none", 0.79, {"first-update": 0.55, "loss": 0.57}, 0.60),
        ("inf", "dropout", 0.70, {"first-update": 0.52, "loss": 0.51}, 0.65),
        ("2.0", "dropout", 0.60, {"first-update": 0.5, "loss": 0.5}, 0.55),
    ]
    rows = []
    for epsilon, variant, utility, attacks, server in cells:
        common = {"dp.all.epsilon": epsilon, "variant": variant, "utility_auc": utility}
        common |= {"utility_auc_low": utility - 0.1, "utility_auc_high": utility + 0.1}
        for observer, attack, auc in [
            *(("participant", *a) for a in attacks.items()),
            ("server", "s", server),
        ]:
            rows.append(
                common
                | {"observer": observer, "attack": attack, "auc": auc, "auc_low": auc - 0.1, "auc_high": 0.95}
            )
    return pd.DataFrame(rows)


def test_the_sentences_are_the_figures(study: ModuleType) -> None:
    table = found()
    table["training"] = [study.training(row) for _, row in table.iterrows()]
    assert list(table["training"].unique()) == ["nothing", "ε = 8", "dropout", "ε = 2 and dropout"]
    trained = study.by_training(table)
    answers = {"full": Estimate(0.62, 0.57, 0.67), "label, 100 queries": Estimate(0.53, 0.48, 0.58)}
    lines = study.sentences(trained, dict.fromkeys(trained["training"], answers), games=2)
    assert "0.750 (0.650 to 0.950) first-update" in lines[0] and "0.620 (0.570 to 0.670)" in lines[0]
    assert "Take **ε = 8**" in lines[1] and "guessing is not ruled out" in lines[1]
    assert "0.570 (0.470 to 0.950) loss" in lines[1]
    assert "dropout leaves the participant least" in lines[2]
    assert "'label, 100 queries' takes it from 0.620" in lines[3]
    assert "0.55 of the server and 0.50 of the participant" in lines[4].replace("\n", " ")
    page = study.page(trained, dict.fromkeys(trained["training"], answers), 2, "")
    assert page.count("\n| ") == 2 * (2 + 4)
