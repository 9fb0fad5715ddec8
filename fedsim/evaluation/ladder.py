"""What the participant's strongest attack finds in each world: how far figures hang on what it owns."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedsim.core import rng
from fedsim.evaluation import comparison
from fedsim.evaluation.leakage import measure, over_games, samples_of

COLUMNS = [
    "world", "attack", "attacks", "value", "low", "high", "tpr", "tpr_low", "tpr_high", "note", "n_members",
    "n_nonmembers",
]  # fmt: skip


def ladder(judged: pd.DataFrame, worlds: Sequence[str], seed: int) -> pd.DataFrame:
    """Return a row a world, in the given order, over all parties and games.

    judged: rows of `leakage.joined`; of the participant's those are read
    attack: the one with the largest AUC in this world, of ``attacks``; value, low, high: this AUC, with an
        interval that allows for the choice (`comparison.strongest`)
    tpr, tpr_low, tpr_high, note: its TPR at 1 % FPR, as in the leakage table
    """
    rows: list[tuple] = []
    participants = judged[judged["observer"] == "participant"]
    for world in worlds:
        here = participants[participants["world"] == world]
        if here.empty:
            continue
        stream = rng.generator(seed, f"ladder/{world}")
        best = next(comparison.strongest(here.assign(party="all"), stream).itertuples(index=False))
        samples = samples_of(here[here["attack"] == best.attack])
        tpr = over_games(samples, [measure(sample) for sample in samples])["tpr_at_fpr_0.01"]
        rows.append(
            (world, best.attack, best.attacks, best.value, best.low, best.high, tpr.value, tpr.low, tpr.high,
             tpr.note, best.n_members, best.n_nonmembers)
        )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
