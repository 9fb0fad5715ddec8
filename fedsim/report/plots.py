"""Figures of a run for a notebook or a paper, drawn with matplotlib: ``run.plot.roc()``.

Each returns the axes, to be changed further, and draws on ``ax`` where one is given. The report's own charts
(`fedsim.report.figures`) need no library and stay what the report shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsim.core.errors import InputError, suggestion
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.leakage import roc_table
from fedsim.evaluation.results import in_world, judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 6
"""Attacks that a figure shows unasked, the strongest first."""


@dataclass(frozen=True)
class Plots:
    """The figures of one run.

    Example:
        >>> axes = fedsim.load("runs/hospitals").plot.roc(["joint", "lira"])  # doctest: +SKIP
    """

    run: RunDirectory

    def roc(self, attacks: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw the ROC curves of attacks over all parties on log axes, the first with its 95 % band.

        attacks: default the strongest `MOST` by AUC. Intervals hold at each rate by itself.

        Raises:
            InputError: matplotlib is not there, an attack has no scores, or the run has none.
        """
        axes = _axes(ax)
        chosen = self._strongest(attacks)
        everyones = judged(self.run)
        table = roc_table(everyones[everyones["attack"].isin(chosen) & _adversary(everyones)])
        for name in chosen:
            rows = table[(table["attack"] == name) & table["tpr"].notna()]
            (line,) = axes.plot(rows["fpr"], rows["tpr"], label=name)
            if name == chosen[0]:
                axes.fill_between(rows["fpr"], rows["low"], rows["high"], alpha=0.15, color=line.get_color())
        rates = np.geomspace(table["fpr"].min(), 1, 50)
        axes.plot(rates, rates, linestyle=":", color="gray", label="guessing")
        axes.set(xscale="log", yscale="log", xlabel="false-positive rate", ylabel="true-positive rate")
        axes.set_ylim(bottom=float(rates[0]))
        axes.legend()
        return axes

    def leakage(self, attacks: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw the AUC of attacks on each party with 95 % intervals; attacks: default the strongest `MOST`.

        Raises:
            InputError: see `roc`.
        """
        axes = _axes(ax)
        rows = self._auc()
        chosen = self._strongest(attacks)
        parties = [name for name in dict.fromkeys(rows["party"]) if name != "all"]
        for k, name in enumerate(chosen):
            of_attack = rows[rows["attack"] == name].set_index("party").reindex(parties)
            spans = [of_attack["value"] - of_attack["low"], of_attack["high"] - of_attack["value"]]
            places = np.arange(len(parties)) + (k - (len(chosen) - 1) / 2) * 0.1
            axes.errorbar(places, of_attack["value"], yerr=np.array(spans), fmt="o", capsize=2, label=name)
        axes.axhline(0.5, linestyle=":", color="gray", label="guessing")
        axes.set_xticks(range(len(parties)), parties)
        axes.set(ylabel="AUC")
        axes.legend()
        return axes

    def rounds(self, metric: str = "accuracy", *, ax: Axes | None = None) -> Axes:
        """Draw a metric of the global model on each party's held-out records by round, mean over games.

        metric: 'accuracy', 'loss' (nats), 'auc' or 'epsilon'

        Raises:
            InputError: matplotlib is not there, or there is no such metric.
        """
        axes = _axes(ax)
        table = self.run.table("rounds")
        known = ("accuracy", "loss", "auc", "epsilon")
        if metric not in known:
            raise InputError(f"metric '{metric}' is none of a round's{suggestion(metric, known)}")
        means = table.groupby(["party", "round"], sort=False)[metric].mean().replace(np.inf, np.nan)
        for party, values in means.groupby("party", sort=False):
            values = values.droplevel("party")
            axes.plot(values.index, values, label=str(party), linewidth=2.5 if party == "all" else 1)
        axes.set(xlabel="round", ylabel="ε" if metric == "epsilon" else metric)
        axes.legend()
        return axes

    def _auc(self) -> pd.DataFrame:
        """Return the AUC rows of the adversary's attacks over all games, in the headline's world."""
        if not self.run.has("leakage"):
            raise InputError(f"{self.run.path} has no leakage yet: the run has not come that far")
        leakage = in_world(self.run, self.run.table("leakage"))
        return leakage[(leakage["metric"] == "auc") & (leakage["game"] == "all") & _adversary(leakage)]

    def _strongest(self, attacks: Sequence[str] | None) -> list[str]:
        rows = self._auc()
        overall = rows[rows["party"] == "all"].sort_values("value", ascending=False, kind="stable")
        ranked = [str(name) for name in overall["attack"]]
        if attacks is None:
            return ranked[:MOST]
        unknown = next((name for name in attacks if name not in ranked), None)
        if unknown is not None:
            raise InputError(
                f"attack '{unknown}' has no scores in {self.run.path}{suggestion(unknown, ranked)}"
            )
        return list(attacks)


def _adversary(table: pd.DataFrame) -> pd.Series:
    """Return which rows are the participant's."""
    return table["observer"] == "participant"


def _axes(ax: Axes | None) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise InputError("run.plot needs matplotlib: pip install 'fedsim[plot]'") from None
    return pyplot.subplots()[1]
