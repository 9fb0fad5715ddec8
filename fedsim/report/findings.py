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
from fedsim.core.scenario.adversary import OBSERVERS, Observer
from fedsim.evaluation import comparison, guarantees
from fedsim.evaluation.comparison import Comparison, Key
from fedsim.evaluation.leakage import FALSE_POSITIVE_RATES, PRIORS, ppv_table, roc_table
from fedsim.evaluation.results import in_world, judged, strongest
from fedsim.report.verdicts import Leak, Rung, leaks_in, rungs_of

PARTICIPANT: Observer = "participant"

MOST_COMPARED = 8
"""Attacks whose TPR is compared with the strongest one's: the bootstrap costs up to a second each."""


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
class Observed:
    """What one observer's strongest attack found on the candidates of all parties.

    tpr: at 10 %, 1 % and .1 % FPR, rows of the leakage table. gain: its AUC minus the participant's strongest
    attack's, paired on the same records; None for the participant, and where there are too few records.
    """

    name: Observer
    leak: Leak
    tpr: list[dict[str, Any]]
    gain: Comparison | None


@dataclass(frozen=True)
class Findings:
    """Everything of one run; tables are empty where the run has not come that far.

    overall: the participant's strongest attack on all parties' candidates.
    leakage: as in the run. ppv, roc, differences, records: see `fedsim.evaluation`;
    ppv, roc, differences and records are the participant's.
    attacks: the participant's, by AUC over all parties, the largest first.
    observers: in the order in which they see more. sources: as in the run. answers: (attack, answers that it
    asked for, ε, δ) of an outsider under an output policy that states an ε.
    conduct: party, and over all its rounds the median, least and largest of ‖Δ‖ and of Δ's cosine with the
    others' updates.
    rounds: round, party, loss, accuracy, auc, epsilon, update_norm, mean over games.
    troubles: party, status, detail, rounds: what went wrong, and how often.
    not_run: observer, attack, reason, games: attacks that could not be run, and in how many games.
    suite: what was declared of the attacks, as in the run.
    ladder: the worlds in the scenario's order; all else is of the first, the headline's.
    matrix: adversary × victim, from this and other runs.
    twins: runs of the same scenario under other DP-SGD.
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
    observers: list[Observed] = field(default_factory=list)
    sources: pd.DataFrame = field(default_factory=pd.DataFrame)
    answers: list[tuple[str, int, float, float]] = field(default_factory=list)
    conduct: pd.DataFrame = field(default_factory=pd.DataFrame)
    not_run: pd.DataFrame = field(default_factory=pd.DataFrame)
    suite: pd.DataFrame = field(default_factory=pd.DataFrame)
    twins: list[RunDirectory] = field(default_factory=list)
    ladder: list[Rung] = field(default_factory=list)

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
    leakage = in_world(run, run.table("leakage"))
    everyones = judged(run)
    own = everyones[everyones["observer"] == PARTICIPANT]
    table = run.table("strongest") if run.has("strongest") else strongest(run)
    leaks = leaks_in(table, PARTICIPANT)
    overall = leaks["all"]
    attacks = _ranked(leakage)
    return Findings(
        run,
        _parties(run, rounds, leaks),
        overall=overall,
        attacks=attacks,
        leakage=leakage,
        ppv=ppv_table(leakage[leakage["observer"] == PARTICIPANT], priors),
        roc=roc_table(own[own["attack"].isin(attacks[:6])]),
        differences=_differences(run, own, overall.attack, attacks),
        records=comparison.vulnerability(own[own["attack"] == overall.attack]),
        matrix=_matrix(run, leakage, others),
        rounds=curves,
        troubles=troubles,
        observers=_observers(everyones, leakage, table),
        sources=run.table("sources") if run.has("sources") else pd.DataFrame(),
        answers=_answers(run, everyones),
        conduct=conduct,
        not_run=_not_run(run),
        suite=run.table("attacks"),
        twins=_twins(run),
        ladder=rungs_of(run.table("ladder")) if run.has("ladder") else [],
    )


def _twins(run: RunDirectory) -> list[RunDirectory]:
    """Return the runs that the manifest names as twins, as far as they are there and finished."""
    names = run.manifest.get("twins", [])
    twins = [RunDirectory(run.path.parent / name) for name in names]
    return [twin for twin in twins if twin.manifest.get("complete")]


def _not_run(run: RunDirectory) -> pd.DataFrame:
    """Return the attacks that could not be run, and the first reason of each."""
    if not run.has("not_run"):
        return pd.DataFrame()
    grouped = run.table("not_run").groupby(["observer", "attack"], sort=False)
    return grouped.agg(reason=("reason", "first"), games=("game", "size")).reset_index()


def _observers(everyones: pd.DataFrame, leakage: pd.DataFrame, table: pd.DataFrame) -> list[Observed]:
    """Return the observers in the order in which they see more; table: as ``strongest.parquet``."""
    participant = leaks_in(table, PARTICIPANT)["all"]
    leaks = {name: leaks_in(table, name).get("all") for name in OBSERVERS}
    return [
        Observed(name, leak, _tpr(leakage, leak), _gain(everyones, leak, participant))
        for name, leak in leaks.items()
        if leak is not None
    ]


def entries(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries by column name."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def empirical(findings: Findings, most: int = 6) -> list[dict[str, Any]]:
    """Return what the strongest attacks' own rates say of ε: attack, tpr, fpr, epsilon.

    tpr, fpr: rows of the leakage table at the adversary's own threshold, which it set without the truth.
    epsilon: see `evaluation.epsilon_needed`.
    """
    proofs = []
    for attack in findings.attacks[:most]:
        by_metric = _over_all(findings.leakage, PARTICIPANT, attack)
        tpr, fpr = by_metric["tpr_at_threshold"], by_metric["fpr"]
        if math.isfinite(tpr["low"]) and math.isfinite(fpr["high"]):
            needed = guarantees.epsilon_needed(tpr["low"], fpr["high"], findings.delta)
            proofs.append({"attack": attack, "tpr": tpr, "fpr": fpr, "epsilon": needed})
    return proofs


def audits(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the run's audits, a row each: the table's columns, of the statistic with the largest bound."""
    if not run.has("audits"):
        return []
    rows = run.table("audits").sort_values("lower", ascending=False, kind="stable")
    return entries(rows.drop_duplicates(["party", "vantage", "method", "worst_case"]).sort_index())


def source_rows(findings: Findings) -> list[dict[str, Any]]:
    """Return every rule of source inference: observer, rule, value, low, high, chance, prior, n."""
    if findings.sources.empty:
        return []
    overall = findings.sources[findings.sources["game"] == "all"]
    rows = []
    for observer, rule in comparison.attacks_in(overall):
        of_rule = comparison.of_attacks(overall, [(observer, rule)])
        by_metric = {row["metric"]: row for row in entries(of_rule)}
        guesses = {"chance": by_metric["chance"]["value"], "prior": by_metric["label_prior"]["value"]}
        rows.append(by_metric["accuracy"] | guesses | {"observer": observer, "rule": rule})
    return rows


def _over_all(leakage: pd.DataFrame, observer: str, attack: str) -> dict[str, dict[str, Any]]:
    """Return an attack's rows of all parties and games, by metric."""
    rows = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")]
    return {row["metric"]: row for row in entries(comparison.of_attacks(rows, [(observer, attack)]))}


def _tpr(leakage: pd.DataFrame, leak: Leak) -> list[dict[str, Any]]:
    by_metric = _over_all(leakage, leak.observer, leak.attack)
    return [by_metric[f"tpr_at_fpr_{alpha}"] for alpha in FALSE_POSITIVE_RATES]


def _gain(everyones: pd.DataFrame, leak: Leak, participant: Leak) -> Comparison | None:
    """Return an observer's AUC minus the participant's, on the same candidates; None where n is too small."""
    if leak.observer == participant.observer:
        return None
    pair: list[Key] = [(leak.observer, leak.attack), (participant.observer, participant.attack)]
    games = comparison.scored(comparison.of_attacks(everyones, pair), pair)
    if any(min(game.member.sum(), (~game.member).sum()) < 2 for game in games):
        return None
    return comparison.compare_auc(games)


def _answers(run: RunDirectory, everyones: pd.DataFrame) -> list[tuple[str, int, float, float]]:
    """Return what each of an outsider's attacks asked for, and what its answers together spent in a game."""
    policy, answers = run.scenario.adversary.output, []
    outsiders = everyones[everyones["observer"] == "outsider"]
    for attack, rows in outsiders.groupby("attack", sort=False):
        candidates = int(rows.groupby("game").size().max())
        count = outsider.answers_asked(str(attack), candidates, policy.queries)
        spent = output.spent(policy, count)
        if spent is not None:
            answers.append((str(attack), count, *spent))
    return answers


def _conduct(rounds: pd.DataFrame) -> pd.DataFrame:
    if rounds.empty or "update_norm" not in rounds:
        return pd.DataFrame()
    sent = rounds[(rounds["status"] == "ok") & rounds["update_norm"].notna()]
    shapes = sent.groupby("party", sort=False)[["update_norm", "update_cosine"]].agg(["median", "min", "max"])
    shapes.columns = ["_".join(pair).removeprefix("update_") for pair in shapes.columns]
    return shapes.reset_index()


def _ranked(leakage: pd.DataFrame) -> list[str]:
    """Return the participant's attacks by AUC over all parties, the largest first."""
    rows = leakage[(leakage["metric"] == "auc") & (leakage["party"] == "all") & (leakage["game"] == "all")]
    rows = rows[rows["observer"] == PARTICIPANT]
    return [str(name) for name in rows.sort_values("value", ascending=False, kind="stable")["attack"]]


def _differences(
    run: RunDirectory, own: pd.DataFrame, reference: str, attacks: Sequence[str]
) -> pd.DataFrame:
    """Compare the strongest attack's AUC with all others', its TPR with the nearest ones'."""
    members = own[own["attack"] == reference].groupby("game")["member"].agg(["sum", "size"])
    if (members["sum"] < 2).any() or (members["size"] - members["sum"] < 2).any():
        return pd.DataFrame()
    stream = rng.generator(run.scenario.seed, "report: bootstrap")
    near = own[own["attack"].isin([reference, *attacks[:MOST_COMPARED]])]
    far = own[~own["attack"].isin(attacks[:MOST_COMPARED]) | (own["attack"] == reference)]
    key = (PARTICIPANT, reference)
    parts = [
        comparison.compare_table(near, key, stream, draws=1000),
        comparison.compare_table(far, key, stream, alpha=None),
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
    refused, final = "refused" in counts, _final(_of_party(run, name))
    plan = (run.manifest.get("dp") or {}).get(name)
    return Party(
        name, records, adversary, epsilon, delta, refused, *final, leak,
        plan=plan, rounds={str(status): int(n) for status, n in counts.items()}, party_epsilon=whole,
    )  # fmt: skip


def _of_party(run: RunDirectory, name: str) -> pd.DataFrame:
    last = run.final_rounds() if run.has("rounds") else pd.DataFrame({"party": []})
    return last[last["party"] == name]


def _final(last: pd.DataFrame) -> tuple[float, float, float]:
    """Return accuracy, AUC and loss of a party's rows of `RunDirectory.final_rounds`, mean over games."""
    if last.empty:
        return math.nan, math.nan, math.nan
    accuracy, auc, loss = (float(last[name].mean()) for name in ("accuracy", "auc", "loss"))
    return accuracy, auc, loss


def overall_utility(findings: Findings) -> tuple[float, float, float]:
    """Return accuracy, AUC and loss of the final model over all parties, mean over games."""
    return _final(_of_party(findings.run, "all"))


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
        tables[adversary] = in_world(other, other.table("leakage"))
    return comparison.exposure(tables)
