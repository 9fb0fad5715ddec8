"""What a run's rounds tell: how far it has come, and what stopping at the best would have left."""

from __future__ import annotations

import pandas as pd

from fedsim.core.run_directory import RunDirectory


def by_round(rounds: pd.DataFrame, utility: pd.DataFrame, released: int) -> str:
    """Say what stopping at the best round would have left.

    rounds: ``confidence_rounds.parquet``; utility: round and loss over all parties; released: the round whose
    model is
    """
    means = rounds.groupby("round")[["auc", "low", "high"]].mean()
    losses = dict(zip(utility["round"], utility["loss"], strict=True))
    best = int(min(losses, key=lambda t: losses[t]))
    last = max(int(t) for t in means.index if t <= released)
    seen = max(int(t) for t in means.index if t <= best)

    def said(t: int) -> str:
        row = means.loc[t]
        return f"AUC {row['auc']:.2f} ({row['low']:.2f} to {row['high']:.2f})"

    if best >= last:
        return (
            f"The loss on held-out records is lowest at round {last}, whose model is released: "
            f"no other would have been a better model. Its confidence alone gives {said(last)}."
        )
    return (
        f"The loss on held-out records is lowest at round {best} ({losses[best]:.2f}); the model that is "
        f"released is of round {last} (loss {losses[last]:.2f}). The confidence of one model alone gives "
        f"{said(seen)} at round {seen} and {said(last)} at round {last}: what stopping there would "
        "have left to whoever is given the released model. A participant has been sent the early rounds in "
        "either case, and the strongest attacks read these."
    )


def progress(run: RunDirectory) -> str:
    """Say how far an unfinished run has come, and what of it has not been run."""
    scenario, manifest = run.scenario, run.manifest
    if not manifest.get("prepared"):
        return "Not finished: it was stopped while its records were dealt; nothing has been trained."
    done = len(manifest.get("games", {}))
    if done == scenario.games:
        return "Not finished: every game was trained and attacked, but not evaluated yet."
    of_rounds = f"{max(0, run.last_round(done))} of {scenario.federation.rounds} rounds"
    attacked = "their attacks have been run" if done else "no attack has been run"
    now = f"game {done + 1} has come to {of_rounds}" if scenario.games > 1 else f"it has come to {of_rounds}"
    return f"Not finished: {done} of {scenario.games} games are done ({attacked}); {now}."
