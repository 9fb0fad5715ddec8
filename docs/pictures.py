"""The guide's and the README's pictures, from a run of the hospitals: `python docs/pictures.py RUN`.

RUN: the folder of a finished `fedsim run experiments/hospitals.toml`, with its report.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot, rcParams

import fedsim
from attacks.calibration import calibrate
from attacks.signals import outputs
from attacks.views import observations
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.truth import read_truth

PLACE = Path(__file__).parent / "pictures"


def gap(run: RunDirectory) -> None:
    """Draw the losses of members and others under two models, with the threshold set on own records."""
    view, folder = observations.load_view(run.observations(0)), run.observations(0)
    candidates = observations.load_candidates(folder)
    truth = read_truth(run.path).query("game == 0").sort_values("candidate")
    member = truth["member"].to_numpy(dtype=bool)
    figure, axes = pyplot.subplots(1, 2, figsize=(7.2, 2.6))
    for t, ax in zip((2, view.final_round), axes, strict=True):
        fit = outputs.scaled_logit(view.logits(t, candidates), candidates.labels)
        own = [outputs.scaled_logit(view.logits(t, r), r.labels) for r in (view.own_train, view.own_heldout)]
        bins = np.linspace(*np.quantile(fit, [0.005, 0.995]), 30)
        for who, words in ((member, "members"), (~member, "held out")):
            ax.hist(np.clip(fit[who], bins[0], bins[-1]), bins, density=True, alpha=0.55, label=words)
        ax.axvline(calibrate(*own), color="black", linewidth=1, label="the adversary's threshold")
        ax.set(title=f"$w_{{{t}}}$", xlabel="scaled logit of the label (higher: better fitted)")
    axes[0].set_ylabel("density")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PLACE / "gap.svg", metadata={"Date": None})


def roc(run: RunDirectory) -> None:
    """Draw the ROC of the strongest attacks, and of loss, which needs no simulation."""
    figure, ax = pyplot.subplots(figsize=(4.6, 3.6))
    fedsim.load(run.path).plot.roc(["joint", "lira", "rmia", "loss"], ax=ax)
    figure.tight_layout()
    figure.savefig(PLACE / "roc.svg", metadata={"Date": None})


def parties(run: RunDirectory) -> None:
    """Copy the report's picture of the strongest attack on each party."""
    fedsim.load(run.path).report()
    shutil.copyfile(run.path / "figures" / "parties.svg", PLACE.parent / "hospitals.svg")


if __name__ == "__main__":
    PLACE.mkdir(exist_ok=True)
    pyplot.switch_backend("Agg")
    # Plain, and the same bytes for the same run.
    plain = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.hashsalt": "fedsim"}
    rcParams.update(plain)
    finished = RunDirectory.open(Path(sys.argv[1]))
    gap(finished)
    roc(finished)
    parties(finished)
