"""What a run found, gathered from its tables: all that the report says, before it is put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from attacks import comparison, evaluation
from fedsim import rng
from fedsim.data import membership
from fedsim.errors import InputError
from fedsim.results import RunDirectory

MOST_COMPARED = 8
"""Attacks whose TPR is compared with the strongest one's: the bootstrap costs up to a second each."""


@dataclass(frozen=True)
class Leak:
    """The strongest attack on some candidates: its AUC, with an interval that allows for the choice."""

    attack: str
    attacks: int
    value: float
    low: float
    high: float
    n_members: int
    n_nonmembers: int


@dataclass(frozen=True)
class Party:
    """One party: what was found out about it, what it is guaranteed, what the model is worth to it.

    epsilon, delta: what it has spent; None where DP-SGD is off. bound: the AUC that they allow.
    accuracy, auc, loss: of the final model on its held-out records, mean over games; NaN before round 0.
    """

    name: str
    records: int
    adversary: bool
    epsilon: float | None
    delta: float | None
    refused: bool
    accuracy: float
    auc: float
    loss: float
    leak: Leak | None

    @property
    def bound(self) -> float | None:
        """The largest AUC, on average over draws, that the guarantee allows any attack."""
        if self.epsilon is None or self.delta is None:
            return None
        return evaluation.auc_bound(self.epsilon, self.delta)


@dataclass(frozen=True)
class Findings:
    """Everything of one run; tables are empty where the run has not come that far.

    overall: the strongest attack on all parties' candidates.
    leakage: as in the run. ppv, roc, differences, records: see `attacks.evaluation`, `attacks.comparison`.
    attacks: by AUC over all parties, the largest first.
    rounds: round, party, loss, accuracy, auc, epsilon, mean over games.
    troubles: party, status, detail, rounds: what went wrong, and how often.
    matrix: adversary × victim, from this and other runs.
    """

    run: RunDirectory
    parties: list[Party]
    overall: Leak | None = None
    attacks: list[str] = field(default_factory=list)
    leakage: pd.DataFrame = field(default_factory=pd.DataFrame)
    ppv: pd.DataFrame = field(default_factory=pd.DataFrame)
    roc: pd.DataFrame = field(default_factory=pd.DataFrame)
    differences: pd.DataFrame = field(default_factory=pd.DataFrame)
    records: pd.DataFrame = field(default_factory=pd.DataFrame)
    rounds: pd.DataFrame = field(default_factory=pd.DataFrame)
    troubles: pd.DataFrame = field(default_factory=pd.DataFrame)
    matrix: pd.DataFrame = field(default_factory=pd.DataFrame)


def gather(
    run: RunDirectory, others: Sequence[RunDirectory] = (), priors: Sequence[float] = evaluation.PRIORS
) -> Findings:
    """Read the run's tables and work out what the report shows.

    others: finished runs of the same federation with other adversaries. priors: see `evaluation.ppv_table`.

    Raises:
        InputError: a file is missing or corrupt, or another run has no leakage or the same adversary.
    """
    rounds = run.table("rounds") if run.has("rounds") else pd.DataFrame()
    curves, troubles = _mean_over_games(rounds), _troubles(rounds)
    if not run.has("leakage"):
        return Findings(run, _parties(run, rounds, {}), rounds=curves, troubles=troubles)
    leakage = run.table("leakage")
    scores = run.table("scores")
    thresholds = scores[["game", "attack", "threshold"]].drop_duplicates(ignore_index=True)
    truth = membership.read_truth(run.path)
    plain = scores[["game", "attack", "candidate", "score"]]
    joined = evaluation.joined(plain, thresholds, truth)
    leaks = _leaks(run, joined)
    attacks = _ranked(leakage)
    best = joined[joined["attack"] == leaks["all"].attack]
    shown = plain["attack"].isin(attacks[:6])
    return Findings(
        run,
        _parties(run, rounds, leaks),
        overall=leaks["all"],
        attacks=attacks,
        leakage=leakage,
        ppv=evaluation.ppv_table(leakage, priors),
        roc=evaluation.roc_table(plain[shown], thresholds, truth),
        differences=_differences(run, joined, leaks["all"].attack, attacks),
        records=comparison.vulnerability(best),
        matrix=_matrix(run, leakage, others),
        rounds=curves,
        troubles=troubles,
    )


def _leaks(run: RunDirectory, joined: pd.DataFrame) -> dict[str, Leak]:
    table = comparison.strongest(joined, rng.generator(run.scenario.seed, "report: simultaneous intervals"))
    return {str(party): Leak(*rest) for party, *rest in table.itertuples(index=False)}


def _ranked(leakage: pd.DataFrame) -> list[str]:
    auc = leakage[(leakage["metric"] == "auc") & (leakage["party"] == "all") & (leakage["game"] == "all")]
    return [str(name) for name in auc.sort_values("value", ascending=False, kind="stable")["attack"]]


def _differences(
    run: RunDirectory, joined: pd.DataFrame, reference: str, attacks: Sequence[str]
) -> pd.DataFrame:
    """Compare the strongest attack's AUC with all others', its TPR with the nearest ones'."""
    members = joined[joined["attack"] == reference].groupby("game")["member"].agg(["sum", "size"])
    if (members["sum"] < 2).any() or (members["size"] - members["sum"] < 2).any():
        return pd.DataFrame()
    stream = rng.generator(run.scenario.seed, "report: bootstrap")
    near = joined[joined["attack"].isin([reference, *attacks[:MOST_COMPARED]])]
    far = joined[~joined["attack"].isin(attacks[:MOST_COMPARED]) | (joined["attack"] == reference)]
    parts = [
        comparison.compare_table(near, reference, stream, draws=1000),
        comparison.compare_table(far, reference, stream, alpha=None),
    ]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _parties(run: RunDirectory, rounds: pd.DataFrame, leaks: dict[str, Leak]) -> list[Party]:
    manifest = run.manifest
    return [
        _party(run, name, int(records), rounds, leaks.get(name), manifest.get("adversary") == name)
        for name, records in manifest.get("parties", {}).items()
    ]


def _party(
    run: RunDirectory, name: str, records: int, rounds: pd.DataFrame, leak: Leak | None, adversary: bool
) -> Party:
    rows = rounds[rounds["party"] == name] if len(rounds) else rounds
    settings = run.scenario.dp_of(name)
    epsilon = delta = None
    if settings is not None and len(rows):
        epsilon, delta = float(rows["epsilon"].max()), settings.delta
    refused = bool(len(rows)) and bool((rows["status"] == "refused").any())
    final = _final(rows)
    return Party(name, records, adversary, epsilon, delta, refused, *final, leak)


def _final(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Return accuracy, AUC and loss after each game's last round, mean over games."""
    if rows.empty:
        return math.nan, math.nan, math.nan
    last = rows.sort_values("round", kind="stable").groupby("game").last()
    accuracy, auc, loss = (float(last[name].mean()) for name in ("accuracy", "auc", "loss"))
    return accuracy, auc, loss


def overall_utility(findings: Findings) -> tuple[float, float, float]:
    """Return accuracy, AUC and loss of the final model over all parties, mean over games."""
    rounds = findings.rounds
    if rounds.empty:
        return math.nan, math.nan, math.nan
    last = rounds[rounds["party"] == "all"].sort_values("round").iloc[-1]
    return float(last["accuracy"]), float(last["auc"]), float(last["loss"])


def _mean_over_games(rounds: pd.DataFrame) -> pd.DataFrame:
    if rounds.empty:
        return rounds
    metrics = ["loss", "accuracy", "auc", "epsilon"]
    return rounds.groupby(["round", "party"], sort=False, as_index=False)[metrics].mean()


def _troubles(rounds: pd.DataFrame) -> pd.DataFrame:
    if rounds.empty:
        return rounds
    bad = rounds[~rounds["status"].isin(["ok", "not drawn"])]
    counted = bad.groupby(["party", "status"], sort=False)
    return counted.agg(rounds=("round", "size"), detail=("detail", "first")).reset_index()


def _matrix(run: RunDirectory, leakage: pd.DataFrame, others: Sequence[RunDirectory]) -> pd.DataFrame:
    if not others:
        return pd.DataFrame()
    tables = {str(run.manifest["adversary"]): leakage}
    for other in others:
        adversary = str(other.manifest.get("adversary"))
        if adversary in tables:
            raise InputError(
                f"{other.path}: its adversary is '{adversary}' as well; the matrix needs another"
            )
        if not other.has("leakage"):
            raise InputError(f"{other.path} has no leakage yet; finish it with `fedsim run … --resume`")
        tables[adversary] = other.table("leakage")
    return comparison.exposure(tables)
