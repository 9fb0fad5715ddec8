"""What a run found, gathered from its tables: all that the report says, before it is put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from attacks.membership import outsider
from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.privacy import output
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import comparison, guarantees
from fedsim.evaluation import leakage as evaluation_leakage
from fedsim.evaluation.comparison import Comparison
from fedsim.evaluation.leakage import FALSE_POSITIVE_RATES, PRIORS, ppv_table, roc_table
from fedsim.evaluation.truth import read_truth

PARTICIPANT = "participant"
OBSERVERS = ("outsider", PARTICIPANT, "coalition", "server")
"""In the order in which they see more. Attacks bear their names, as 'server/loss', a participant's none."""

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
    plan: its DP-SGD as planned before round 1 (`core.privacy.plan.Plan` by field), None where DP-SGD is off.
    rounds: status → rounds, in all games.
    party_epsilon: what central DP has spent on it as a whole, None where that is off.
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
    plan: dict[str, Any] | None = None
    rounds: dict[str, int] = field(default_factory=dict)
    party_epsilon: float | None = None

    @property
    def accountant(self) -> str:
        """The accountant that really gave ε: RDP stands in for PRV in places (`Ledger.accounted_by`)."""
        if self.plan is None:
            return ""
        plan = self.plan
        ledger = Ledger().add(
            plan["noise_multiplier"], plan["sample_rate"], plan["steps_per_round"] * plan["rounds"]
        )
        return ledger.accounted_by(plan["delta"], plan["accountant"])

    @property
    def bound(self) -> float | None:
        """The largest AUC, on average over draws, that the guarantee allows any attack."""
        if self.epsilon is None or self.delta is None:
            return None
        return guarantees.auc_bound(self.epsilon, self.delta)


@dataclass(frozen=True)
class Observer:
    """What one observer's strongest attack found on the candidates of all parties.

    tpr: at 10 %, 1 % and .1 % FPR, rows of the leakage table. gain: its AUC minus the participant's strongest
    attack's, paired on the same records; None for the participant, and where there are too few records.
    """

    name: str
    leak: Leak
    tpr: list[dict[str, Any]]
    gain: Comparison | None


@dataclass(frozen=True)
class Findings:
    """Everything of one run; tables are empty where the run has not come that far.

    overall: the participant's strongest attack on all parties' candidates.
    leakage: as in the run. ppv, roc, differences, records: see `fedsim.evaluation`;
    roc, differences and records are the participant's.
    attacks: the participant's, by AUC over all parties, the largest first.
    observers: in the order in which they see more. sources: as in the run. answers: (attack, answers that it
    asked for, ε, δ) of an outsider under an output policy that states an ε.
    conduct: party, and over all its rounds the median, least and largest of ‖Δ‖ and of Δ's cosine with the
    others' updates.
    rounds: round, party, loss, accuracy, auc, epsilon, update_norm, mean over games.
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
    observers: list[Observer] = field(default_factory=list)
    sources: pd.DataFrame = field(default_factory=pd.DataFrame)
    answers: list[tuple[str, int, float, float]] = field(default_factory=list)
    conduct: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def guarantee(self) -> tuple[float, float] | None:
        """The largest ε and the largest δ of the victims, None unless all of them have DP-SGD.

        What holds for every one of them: leakage over all parties together is bounded by it.
        """
        victims = [party for party in self.parties if party.leak is not None]
        pairs = [(v.epsilon, v.delta) for v in victims if v.epsilon is not None and v.delta is not None]
        if not pairs or len(pairs) < len(victims):
            return None
        return max(epsilon for epsilon, _ in pairs), max(delta for _, delta in pairs)

    @property
    def delta(self) -> float:
        """The δ at which an empirical ε is stated: the victims', or 10⁻⁵ where none has one."""
        return max((party.delta for party in self.parties if party.delta is not None), default=1e-5)


def gather(
    run: RunDirectory, others: Sequence[RunDirectory] = (), priors: Sequence[float] = PRIORS
) -> Findings:
    """Read the run's tables and work out what the report shows.

    others: finished runs of the same federation with other adversaries. priors: see `evaluation.ppv_table`.

    Raises:
        InputError: a file is missing or corrupt, or another run has no leakage or the same adversary.
    """
    rounds = run.table("rounds") if run.has("rounds") else pd.DataFrame()
    curves, troubles, conduct = _mean_over_games(rounds), _troubles(rounds), _conduct(rounds)
    if not run.has("leakage"):
        parties = _parties(run, rounds, {})
        return Findings(run, parties, rounds=curves, troubles=troubles, conduct=conduct)
    leakage = run.table("leakage")
    scores = run.table("scores")
    thresholds = scores[["game", "attack", "threshold"]].drop_duplicates(ignore_index=True)
    truth = read_truth(run.path)
    plain = scores[["game", "attack", "candidate", "score"]]
    everyones = evaluation_leakage.joined(plain, thresholds, truth)
    joined = everyones[everyones["attack"].map(observer_of) == PARTICIPANT]
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
        ppv=ppv_table(leakage, priors),
        roc=roc_table(plain[shown], thresholds, truth),
        differences=_differences(run, joined, leaks["all"].attack, attacks),
        records=comparison.vulnerability(best),
        matrix=_matrix(run, leakage, others),
        rounds=curves,
        troubles=troubles,
        observers=_observers(run, everyones, leakage, leaks["all"]),
        sources=run.table("sources") if run.has("sources") else pd.DataFrame(),
        answers=_answers(run, everyones),
        conduct=conduct,
    )


def observer_of(attack: str) -> str:
    """Return who mounts an attack."""
    name = attack.split("/")[0]
    return name if name in OBSERVERS and name != attack else PARTICIPANT


def _observers(
    run: RunDirectory, joined: pd.DataFrame, leakage: pd.DataFrame, participant: Leak
) -> list[Observer]:
    """Return the observers in the order in which they see more."""
    found = []
    observer = joined["attack"].map(observer_of)
    for name in OBSERVERS:
        mine = joined[observer == name]
        if len(mine):
            leak = participant if name == PARTICIPANT else _strongest(run, mine, name)
            found.append(Observer(name, leak, _tpr(leakage, leak.attack), _gain(joined, leak, participant)))
    return found


def _strongest(run: RunDirectory, joined: pd.DataFrame, observer: str) -> Leak:
    stream = rng.generator(run.scenario.seed, f"report: simultaneous intervals of {observer}")
    table = comparison.strongest(joined.assign(party="all"), stream)
    return next(Leak(*row[1:]) for row in table.itertuples(index=False))


def entries(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries by column name."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def empirical(findings: Findings, most: int = 6) -> list[dict[str, Any]]:
    """Return what the strongest attacks' own rates say of ε: attack, tpr, fpr, epsilon.

    tpr, fpr: rows of the leakage table at the adversary's own threshold, which it set without the truth.
    epsilon: see `evaluation.epsilon_needed`.
    """
    found = []
    for attack in findings.attacks[:most]:
        by_metric = {row["metric"]: row for row in _over_all(findings.leakage, attack)}
        tpr, fpr = by_metric["tpr_at_threshold"], by_metric["fpr"]
        if math.isfinite(tpr["low"]) and math.isfinite(fpr["high"]):
            needed = guarantees.epsilon_needed(tpr["low"], fpr["high"], findings.delta)
            found.append({"attack": attack, "tpr": tpr, "fpr": fpr, "epsilon": needed})
    return found


def source_rows(findings: Findings) -> list[dict[str, Any]]:
    """Return every rule of source inference: observer, rule, value, low, high, chance, prior, n."""
    if findings.sources.empty:
        return []
    overall = findings.sources[findings.sources["game"] == "all"]
    rows = []
    for attack in overall["attack"].unique():
        by = {row["metric"]: row for row in entries(overall[overall["attack"] == attack])}
        guesses = {"chance": by["chance"]["value"], "prior": by["label_prior"]["value"]}
        rule = str(attack).split("/")[-1]
        rows.append(by["accuracy"] | guesses | {"observer": observer_of(str(attack)), "rule": rule})
    return rows


def _over_all(leakage: pd.DataFrame, attack: str) -> list[dict[str, Any]]:
    """Return an attack's rows of all parties and games."""
    keys = (leakage["attack"] == attack) & (leakage["party"] == "all") & (leakage["game"] == "all")
    return entries(leakage[keys])


def _tpr(leakage: pd.DataFrame, attack: str) -> list[dict[str, Any]]:
    by_metric = {row["metric"]: row for row in _over_all(leakage, attack)}
    return [by_metric[f"tpr_at_fpr_{alpha}"] for alpha in FALSE_POSITIVE_RATES]


def _gain(joined: pd.DataFrame, leak: Leak, participant: Leak) -> Comparison | None:
    if leak.attack == participant.attack:
        return None
    pair = [leak.attack, participant.attack]
    games = comparison.scored(joined[joined["attack"].isin(pair)], pair)
    if any(min(game.member.sum(), (~game.member).sum()) < 2 for game in games):
        return None
    return comparison.compare_auc(games)


def _answers(run: RunDirectory, joined: pd.DataFrame) -> list[tuple[str, int, float, float]]:
    """Return what each of an outsider's attacks asked for, and what its answers together spent in a game."""
    policy, found = run.scenario.adversary.output, []
    for attack in joined["attack"].unique():
        if observer_of(attack) == "outsider":
            candidates = int(joined[joined["attack"] == attack].groupby("game").size().max())
            asked = outsider.answers_asked(attack, candidates, policy.queries)
            spent = output.spent(policy, asked)
            if spent is not None:
                found.append((attack, asked, *spent))
    return found


def _conduct(rounds: pd.DataFrame) -> pd.DataFrame:
    if rounds.empty or "update_norm" not in rounds:
        return pd.DataFrame()
    sent = rounds[(rounds["status"] == "ok") & rounds["update_norm"].notna()]
    shapes = sent.groupby("party", sort=False)[["update_norm", "update_cosine"]].agg(["median", "min", "max"])
    shapes.columns = ["_".join(pair).removeprefix("update_") for pair in shapes.columns]
    return shapes.reset_index()


def _leaks(run: RunDirectory, joined: pd.DataFrame) -> dict[str, Leak]:
    table = comparison.strongest(joined, rng.generator(run.scenario.seed, "report: simultaneous intervals"))
    return {str(party): Leak(*rest) for party, *rest in table.itertuples(index=False)}


def _ranked(leakage: pd.DataFrame) -> list[str]:
    auc = leakage[(leakage["metric"] == "auc") & (leakage["party"] == "all") & (leakage["game"] == "all")]
    auc = auc[auc["attack"].map(observer_of) == PARTICIPANT]
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
    central = run.scenario.federation.central_dp
    whole = float(rows["party_epsilon"].max()) if central is not None and len(rows) else None
    trained = rows[rows["round"] > 0] if len(rows) else rows
    counts = trained["status"].value_counts().to_dict() if len(rows) else {}
    refused, final = "refused" in counts, _final(rows)
    plan = (run.manifest.get("dp") or {}).get(name)
    return Party(
        name, records, adversary, epsilon, delta, refused, *final, leak,
        plan=plan, rounds={str(status): int(n) for status, n in counts.items()}, party_epsilon=whole,
    )  # fmt: skip


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
    metrics = [
        name for name in ("loss", "accuracy", "auc", "epsilon", "update_norm") if name in rounds.columns
    ]
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
    own = {name: table[table["attack"].map(observer_of) == PARTICIPANT] for name, table in tables.items()}
    return comparison.exposure(own)
