"""The findings in sentences, for someone who decides and need not know the field."""

from __future__ import annotations

import math

from attacks import deviation
from fedsim.core.privacy import shipped
from fedsim.core.scenario.adversary import OWNS
from fedsim.core.scenario.protection import DefenceSettings, DPSettings, OutputPolicy, ReleaseSettings
from fedsim.core.scenario.settings import Scenario
from fedsim.core.scenario.training import PrivateTrainingSettings, TrainingSettings
from fedsim.evaluation import guarantees
from fedsim.evaluation.comparison import of_attacks
from fedsim.report.findings import Findings, Leak, Party
from fedsim.report.verdicts import Verdict, condition, headline, listed, other_worlds


def answer(findings: Findings, record: str) -> Verdict:
    """Answer the first question in one sentence, with its condition inside."""
    overall = findings.overall
    holding = ""
    if overall is not None:
        holding = condition(findings.run.scenario.adversary, overall, findings.suite, record)
    return headline(
        overall,
        {p.name: p.leak for p in findings.parties if p.leak is not None},
        holding,
        other_worlds(findings.ladder),
    )


def meaning(leak: Leak, record: str) -> str:
    """Say what an AUC is: the share of pairs that are told apart."""
    return (
        f"Of two {record}s, one whose record trained the model and one whose record did not, the strongest "
        f"of {leak.attacks} attacks ({leak.attack}) picks the right one in {_percent(leak.value)} of such "
        f"pairs (95\u202f% interval {_percent(leak.low)} to {_percent(leak.high)}). Tossing a coin picks it "
        "in 50\u202f%."
    )


def confident(findings: Findings, record: str) -> str:
    """Say what the same attack finds when it must hardly ever accuse wrongly."""
    assert findings.overall is not None
    rows = findings.leakage
    rows = of_attacks(rows, [(findings.overall.observer, findings.overall.attack)])
    keys = (rows["party"] == "all") & (rows["game"] == "all")
    row = rows[keys & (rows["metric"] == "tpr_at_fpr_0.01")].iloc[0]
    if not math.isfinite(row["value"]):
        return (
            f"How many {record}s it finds when it may call only 1 in 100 outsiders a member cannot be told "
            f"with {row['n_nonmembers']} held-out records."
        )
    return (
        f"When it may call only 1 in 100 outsiders a member, it finds {_percent(row['value'])} of the "
        f"members ({_percent(row['low'])} to {_percent(row['high'])}); guessing finds 1\u202f%."
    )


def owns(name: str) -> str:
    """Say what the adversary owns in a world."""
    return OWNS[name]


def world(findings: Findings, record: str) -> str:
    """Say what the strongest attack assumes its owner to hold: how far its figures carry."""
    assert findings.overall is not None
    settings, name = findings.run.scenario.adversary, findings.overall.attack
    suite, here = findings.suite, settings.ladder[0]
    of_attack = suite[(suite["observer"] == findings.overall.observer) & (suite["attack"] == name)]
    if not of_attack["shadows"].any():
        central = findings.run.scenario.federation.central_dp
        left_out = (
            " Attacks on shadow federations, which elsewhere find most, were left out." if central else ""
        )
        return (
            f"For this {name} needs each candidate's full record, with its label, and nothing more of the "
            f"other parties.{left_out}"
        )
    if here == "all":
        return (
            "This is a closed world: the adversary is assumed to own every candidate's full record already, "
            "among the other records of the parties, and to lack only who trained on which. "
            f"{name} simulates {settings.shadows} whole federations on them. What an adversary finds who "
            f"owns fewer {record}s' records stands below, world by world (adversary.worlds)."
        )
    return (
        f"For this {name} needs each candidate's full record, and simulates {settings.shadows} federations; "
        f"the adversary owns {OWNS[here]}."
    )


def central(findings: Findings) -> str:
    """Say what central DP promises, and to whom; '' where it is off."""
    settings = findings.run.scenario.federation.central_dp
    spent = [party.party_epsilon for party in findings.parties if party.party_epsilon is not None]
    if settings is None or not spent:
        return ""
    return (
        f"Central DP is on: each party as a whole has ε = {max(spent):.3g} at δ = {delta(settings.delta)} "
        "against whoever sees the aggregates. That is a promise about parties: of a single record it hides, "
        "from a participant, who receives the aggregate, only what its noise hides."
    )


def switch(parties: list[Party]) -> str:
    """Say what DP-SGD guarantees, and to whom."""
    protected = [party for party in parties if party.epsilon is not None]
    if not protected:
        return "No party has switched DP-SGD on: nobody has a guarantee, and another attack may find more."
    guarantees_of_three = "; ".join(
        f"{party.name}: ε = {party.epsilon:.3g}, δ = {delta(party.delta)}, {limit(party.bound)}"
        for party in protected[:3]
    )
    more = f"; and {len(protected) - 3} more in the table" if len(protected) > 3 else ""
    rest = len(parties) - len(protected)
    others = f" The other {rest} have no guarantee." if rest else ""
    return (
        f"DP-SGD is on at {len(protected)} of {len(parties)} parties ({guarantees_of_three}{more}).{others}"
    )


def limit(bound: float | None) -> str:
    """Say what a guarantee allows; from .9995 on the figure would look like a limit and be none."""
    if bound is None or bound >= 0.9995:
        return "which by itself rules out hardly any attack"
    return f"so that no attack can exceed an AUC of {bound:.3f} on average"


def delta(value: float | None) -> str:
    """Write δ: '10⁻⁵' where it is a power of ten, else '2.5e-06'."""
    if value is None:
        return "–"
    shown = f"{value:.0e}"
    if not shown.startswith("1e-") or float(shown) != value:
        return f"{value:g}"
    return "10⁻" + str(int(shown[3:])).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def scenario_in_words(scenario: Scenario, parties: list[Party], adversary: str, record: str) -> list[str]:
    """Describe the experiment: who, what, how, and who attacks; record: what one is called."""
    records = sum(party.records for party in parties)
    federation, training = scenario.federation, scenario.training
    games = "This was run once."
    if scenario.games > 1:
        games = (
            f"This was run {scenario.games} times, each with another draw of who is a member; figures are "
            "means over these games."
        )
    return [
        f"{len(parties)} {scenario.parties.sector}s hold {records} {record} records in all, from "
        f"{_source(scenario)}. Each trains on {_percent(scenario.parties.member_share)} of its records (the "
        "members) and holds the others out (the non-members).",
        f"Together they train a {_model(scenario)} for {federation.rounds} rounds with "
        f"{federation.strategy}: in each round {_who(scenario, len(parties))} trains for "
        f"{_work(training)} and sends its model to the server, which combines them."
        + (f" Under DP-SGD it trains for {_work(training.private)}." if scenario.dp else ""),
        f"{adversary} is {_character(scenario)}, keeps every model that it is sent, and then asks of each "
        "candidate record of the other parties: was it used for training? " + games,
    ]


def _work(training: TrainingSettings | PrivateTrainingSettings) -> str:
    """Describe the local training of a round."""
    passes = f"{training.epochs} epoch" + "s" * (training.epochs > 1)
    return (
        (f"{training.steps} steps" if training.steps else passes)
        + f" by {training.optimizer.upper()} (learning rate {training.lr:g}, "
        + ("all its records at once)" if training.batch == "all" else f"batches of {training.batch})")
    )


def _character(scenario: Scenario) -> str:
    acts = deviation.assumption(scenario.adversary).strip().removesuffix(".")
    if acts:
        return f"malicious. {acts}. Otherwise it does what the protocol asks"
    return "curious. It does what the protocol asks"


def dp_in_words(settings: DPSettings) -> str:
    """Describe a party's switch."""
    if settings.epsilon is not None:
        target = f"target ε = {settings.epsilon:g}"
    else:
        target = f"noise multiplier {settings.noise_multiplier:g}"
    clipping = f"clipping norm {settings.clipping_norm:g}"
    if settings.clipping == "adaptive":
        clipping += f" at first, then towards the {settings.clipping_quantile:g}-quantile"
    source = ", secure randomness" if settings.secure else ""
    if settings.unit == "person":
        source += ", for whole persons"
    return f"{target}, {clipping}{source}"


def defence_in_words(settings: DefenceSettings) -> str:
    """Name what a party does beside DP-SGD: 'label_smoothing = 0.1, dropout = 0.5'."""
    default = DefenceSettings()
    used = {k: value for k, value in settings if value != getattr(default, k) and k != "shipped"}
    if settings.patience is not None:
        used["stop_on"] = settings.stop_on
    return ", ".join(f"{key} = {value}" for key, value in used.items()) or "nothing"


def policy_in_words(policy: OutputPolicy) -> str:
    """Describe what the released model answers to an outsider."""
    budget = "" if policy.queries is None else f", {policy.queries} queries in all"
    by_policy = {
        "full": "all probabilities, as they are",
        "rounded": f"probabilities rounded to {policy.digits} decimals",
        "top-k": f"the {policy.top} largest probabilities",
        "label": "the most likely class alone",
        "noisy": f"probabilities with noise of standard deviation {policy.noise:g}",
        "laplace": f"probabilities with Laplace noise: ε = {policy.epsilon:g} an answer",
        "gaussian": f"probabilities with Gaussian noise: ε = {policy.epsilon:g}, δ = {delta(policy.delta)} "
        "an answer",
        "hamp": "the probabilities of a random record, in the order of its own (HAMP)",
        "memguard": f"probabilities moved by {policy.distortion:g} in expectation (MemGuard)",
        "votes": f"the winner of the members' votes with Laplace noise: ε = {policy.epsilon:g} an answer",
        "temperature": f"probabilities at temperature {policy.temperature:g}",
    }
    return by_policy[policy.policy] + budget


def release_in_words(release: ReleaseSettings) -> str:
    """Describe what is served in place of the final model."""
    if release.of == "federation":
        members = f"the last {release.members} global models"
    else:
        members = f"{release.members} model(s) of each party, trained apart"
    what = "an ensemble" if release.kind == "ensemble" else "a student, on public records, of an ensemble"
    return f"{what} of {members}"


def protections(findings: Findings) -> list[tuple[str, str]]:
    """Name every protection that is on, and against whom it can do something: (what, words)."""
    scenario, names = findings.run.scenario, [party.name for party in findings.parties]
    protections_on = []
    for name in names:
        settings, defence = scenario.dp_of(name), scenario.defence_of(name)
        if settings is not None:
            protections_on.append((f"{name}: DP-SGD", f"{dp_in_words(settings)}; against everyone"))
        if defence is not None and defence_in_words(defence) != "nothing":
            protections_on.append((f"{name}: defences", f"{defence_in_words(defence)}; no guarantee"))
        if defence is not None and defence.shipped is not None:
            said = shipped.in_words(defence.shipped, scenario.federation.rounds)
            protections_on.append((f"{name}: {defence.shipped.mechanism}", said))
    dp = scenario.federation.central_dp
    if dp is not None:
        where = "server" if dp.where == "server" else "parties"
        description = (
            f"{dp.clipping} clipping at the {where}, from norm {dp.clipping_norm:g}; noise multiplier "
            f"{dp.noise_multiplier:g}; of whole parties, against whoever sees aggregates; trusts the server"
        )
        protections_on.append(("Central DP", description))
    if scenario.adversary.secure_aggregation:
        protections_on.append(
            ("Secure aggregation", "against the server alone: participants receive the aggregate")
        )
    if scenario.release.kind != "final":
        protections_on.append(("Release", f"{release_in_words(scenario.release)}; against outsiders alone"))
    if scenario.adversary.output.policy != "full" or scenario.adversary.output.queries is not None:
        policy = policy_in_words(scenario.adversary.output)
        protections_on.append(("Answers of the released model", f"{policy}; against outsiders alone"))
    return protections_on


def answers(findings: Findings) -> str:
    """Say what an outsider's queries spent of the ε that the output policy states for one answer."""
    policy = findings.run.scenario.adversary.output
    attack, count, epsilon, most = max(findings.answers, key=lambda row: row[1])
    of_one = f"ε = {policy.epsilon:g}" + (
        f", δ = {delta(policy.delta)}" if policy.policy == "gaussian" else ""
    )
    total = f"ε = {epsilon:.6g}" + (f", δ = {most:.2g}" if most else "")
    bound = guarantees.auc_bound(epsilon, most)
    return (
        f"One answer of the released model costs {of_one}, and answers add up (basic composition): an attack "
        f"that asks most, {attack}, asks {count} times in a game, which is {total} in all, "
        f"{limit(bound)}."
    )


SEES = {
    "outsider": "the final model's answers",
    "participant": "every global model, its own records and updates",
    "coalition": "what several participants see, together",
    "server": "every party's own update of every round",
}


def sees(findings: Findings, observer: str) -> str:
    """Say in a few words what an observer sees in this run."""
    settings = findings.run.scenario.adversary
    if observer == "outsider":
        return f"{SEES[observer]}: {policy_in_words(settings.output)}"
    if observer == "coalition":
        return f"what {findings.run.manifest.get('adversary')} and {listed(settings.coalition)} see, together"
    if observer == "server" and settings.secure_aggregation:
        return "the sum of the updates of every round (secure aggregation)"
    return SEES[observer]


def acting(findings: Findings) -> str:
    """Say what an active adversary does."""
    adversary = findings.run.manifest.get("adversary")
    acts = deviation.assumption(findings.run.scenario.adversary).strip()
    return f"{adversary} does not only watch. {acts}"


def conduct(findings: Findings) -> str:
    """Say how an active adversary's updates compare with the others'."""
    table, adversary = findings.conduct, str(findings.run.manifest.get("adversary"))
    adversarys, others = table[table["party"] == adversary], table[table["party"] != adversary]
    if adversarys.empty or others.empty:
        return ""
    own, most = adversarys.iloc[0], others["norm_median"]
    place = int((most > own["norm_median"]).sum()) + 1
    turned = int((others["cosine_median"] < own["cosine_median"]).sum()) + 1
    return (
        f"In the median round its update is {own['norm_median']:.3g} long ({ordinal(place, 'longest')} of "
        f"{len(table)} parties; the others' medians go from {most.min():.3g} to {most.max():.3g}), and its "
        f"cosine with the others' is {own['cosine_median']:.2f} ({ordinal(turned, 'lowest')}; theirs "
        f"from {others['cosine_median'].min():.2f} to {others['cosine_median'].max():.2f}). A server that "
        "looks at single updates could see that much; under secure aggregation it could not."
    )


def ordinal(place: int, what: str) -> str:
    """Say 'the longest', 'the second-longest', 'the 21st-longest'."""
    names = {1: "", 2: "second-", 3: "third-"}
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"the {names.get(place, f'{place}{ending}-')}{what}"


def assumptions(findings: Findings) -> list[tuple[str, str]]:
    """Say what the adversary sees, owns and is assumed to know: (what, words)."""
    settings = findings.run.scenario.adversary
    deviates = deviation.assumption(settings).strip() or "no: it trains honestly and sends what it should"
    facts = [
        ("Observer", "participant: every global model that it is sent, its own records and updates"),
        ("Knows", "the public settings: architecture, rounds, local training, number of parties, strategy"),
        ("Holds", "the candidates' records in full, with their labels, but not who trained on them"),
        ("Deviates", deviates),
        ("Thresholds", "set on its own training and held-out records, never on the other parties' truth"),
    ]
    for key, value in settings.model_dump().items():
        if key not in ("party", "attacks", "folder"):
            shown = "default" if value in (None, []) else str(value)
            shown = policy_in_words(settings.output) if key == "output" else shown
            facts.append((f"adversary.{key}", f"{shown} ({type(settings).model_fields[key].description})"))
    return facts


def outside(findings: Findings, record: str) -> list[str]:
    """List what ε does not cover (DESIGN §7): it is about the training steps and nothing else."""
    unprotected = [party.name for party in findings.parties if party.epsilon is None]
    points = []
    if unprotected:
        names = listed(unprotected)
        points.append(
            f"Everything about the records of {names}: training there is without DP-SGD, and the exact "
            "training loss is reported."
        )
    points += [
        "Held-out figures: after each round every party reports loss, accuracy and AUC on its held-out "
        "records, exactly. These records are real, and were not used for training.",
        "Sample counts: the exact number of training and held-out records of each party.",
        "Hyperparameters: learning rate, rounds, batch size, clipping norm and model are taken as chosen "
        "without looking at private records. Where they were tuned on them, that is not accounted for.",
        "Time and attendance: the seconds that a party took, and the rounds in which it refused or failed.",
        "Persons with several records: the unit of (ε, δ) is one record of one party, unless dp.unit = "
        "'person'. Whoever has k records there is guaranteed less (`fedsim persons` says how much); a "
        f"{record} known to several parties spends at each of them.",
        "What a party does beside DP-SGD: early stopping on held-out records, where it is on, makes the "
        "model depend on them; and how strong any defence is set is a choice like other hyperparameters.",
    ]
    private = [dp for party in findings.parties if (dp := findings.run.scenario.dp_of(party.name))]
    if not all(dp.secure for dp in private):
        points.append(
            "The random stream: this simulation derives its noise from the seed below, so that anyone can "
            "repeat it. Whoever knows the seed can take the noise off. A real deployment must draw it from a "
            "secret source (dp.<party>.secure = true)."
        )
    return points


def _source(scenario: Scenario) -> str:
    data = scenario.data
    if data.name is not None:
        return f"the named data set '{data.name}'"
    if data.text is not None:
        return "letters of their own"
    return "their own tables" if isinstance(data.path, dict) else "a table of their own"


def _model(scenario: Scenario) -> str:
    model = scenario.model
    names = {
        "mlp": "multilayer perceptron",
        "logistic": "logistic regression",
        "cnn": "convolutional network",
    }
    widths = (
        f" (hidden layers of {', '.join(map(str, model.hidden))})" if model.name in ("mlp", "cnn") else ""
    )
    return names.get(model.name, f"model '{model.name}'") + widths


def _who(scenario: Scenario, parties: int) -> str:
    drawn = scenario.federation.participants(parties)
    return "every party" if drawn == parties else f"each of {drawn} parties, drawn at random,"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "\u202f%"
