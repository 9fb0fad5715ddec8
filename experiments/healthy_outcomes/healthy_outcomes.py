"""The released model, attacked: ten steps from four clinics' patients to who is accused, with each defence.

    python experiments/healthy_outcomes/healthy_outcomes.py [--out runs/healthy-outcomes] [--quick]

A start-up offers a diagnostic model of rare disorders to research institutions. A researcher with a key
compares the model's answers about people who are known not to be in its data with those about the members of
a patients' group. Everything is asked over HTTP, on this machine. Makes
`experiments/results/healthy_outcomes.md` and a figure; about 10 CPU minutes. Stopped, it goes on with the
same command.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import registry
from defences import DEFENCES, Defence

from attacks.released.shadows import ShadowSettings
from attacks.shadows.simulate import Laboratory
from fedsim.core import files
from fedsim.core.data.released import decode_rows, read_schema
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.core.scenario.reading import parse
from fedsim.core.scenario.training import ModelSettings
from fedsim.evaluation.estimates import Estimate, rate
from fedsim.evaluation.outsider import ranked
from fedsim.evaluation.truth import read_truth
from fedsim.report import svg
from fedsim.runs import outsider, play, prepare
from fedsim.serving import keys, service
from fedsim.serving.app import Settings
from fedsim.serving.keys import Limits

RESULTS = Path(__file__).resolve().parents[1] / "results"
PATIENTS, PUBLIC = 720, 200
SHADOWS = ShadowSettings(shadows=32, model=ModelSettings(hidden=[64]))


# ------------------------------------------------------------------------ the clinics and their service
def federation(defence: Defence, out: Path, data: Path, quick: bool) -> RunDirectory:
    """Steps 1 and 2: every clinic keeps its own records; together they train the model. Kept in ``out``."""
    document = registry.scenario(str(data / "registry.csv"), str(data / "public.csv")) | defence.changes
    if quick:
        document["federation"] = {"rounds": 3}
    folder = out / files.slug(" ".join([defence.name] if defence.changes else ["nothing"]))
    with contextlib.suppress(Exception):
        run = RunDirectory.open(folder)
        if run.manifest.get("complete"):
            return run
    run = prepare.prepare(prepare.check(parse(document), None), folder)
    play.federate(run)
    return run


@contextlib.contextmanager
def served(run: RunDirectory, defence: Defence) -> Iterator[tuple[str, str]]:
    """Step 3: the model behind a URL, and the researcher's key."""
    made = service.opened(run, Settings(), seed=5)
    policy = OutputPolicy(**defence.policy)
    epsilon = 1e6 if policy.policy in ("laplace", "votes") else None
    limits = Limits(None, defence.queries, epsilon)
    name = f"researcher {time.time_ns()}"
    key = keys.add(made.database, made.secret, name, policy, limits, time.time())[1]
    told: list[Any] = []
    ready = threading.Event()

    def note(*said: Any) -> None:
        told.extend(said)
        ready.set()

    thread = threading.Thread(target=service.serve, args=(made, "127.0.0.1", 0, note))
    thread.start()
    try:
        if not ready.wait(30):
            raise RuntimeError("the service did not start")
        yield told[0], key
    finally:
        if told:
            told[1]()
        thread.join(30)


def persons(run: RunDirectory, folder: Path) -> tuple[Path, Path]:
    """Step 4: the patients' group, half of whom are in the data, and people known not to be."""
    schema, candidates = read_schema(run.path), run.read_candidates(0).records
    truth = read_truth(run.path)
    frame = pd.DataFrame(decode_rows(schema, candidates.features))
    frame[schema.schema.label] = [schema.schema.classes[label] for label in candidates.labels]
    frame["member"] = np.where(truth["member"], "yes", "no")
    others = np.flatnonzero(~truth["member"].to_numpy(bool))
    known, group = np.array_split(np.random.default_rng(0).permutation(others), 2)
    members = np.random.default_rng(1).permutation(np.flatnonzero(truth["member"].to_numpy(bool)))[
        : len(group)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(2).permutation(np.concatenate([members, group]))
    frame.iloc[order].to_csv(folder / "group.csv", index=False)
    frame.iloc[known].drop(columns="member").to_csv(folder / "outsiders.csv", index=False)
    return folder / "group.csv", folder / "outsiders.csv"


# ------------------------------------------------------------------------------------ the researcher
@dataclass(frozen=True)
class Outcome:
    """Steps 5 to 9 with one defence: confidence in the own diagnosis, threshold, who is accused, how rightly.

    of_members, of_others: probabilities of the members of the group, and of the known outsiders
    right: of the accused; wrong: of the group who are not in the data
    """

    accuracy: float
    of_members: np.ndarray
    of_others: np.ndarray
    threshold: float
    accused: int
    right: Estimate
    wrong: Estimate
    auc: dict[str, Estimate]
    queries: int


def investigate(
    run: RunDirectory, defence: Defence, lists: tuple[Path, Path], laboratory: Laboratory
) -> Outcome:
    with served(run, defence) as (url, key):
        target = outsider.remote(url, key)
        asked = outsider.question(target, *lists, truth="member")
        found = outsider.attack(target, asked, seed=3, settings=SHADOWS, laboratory=laboratory)
        accuracy = float(target_card(url, key)["accuracy"])
    member = asked.candidates.truth
    assert member is not None
    spending = found.answers.spending
    told = member[: spending.candidates]
    labels = asked.candidates.records.labels[: spending.candidates]
    confidence = found.answers.candidates[np.arange(len(labels)), labels]
    known = found.answers.outsiders[
        np.arange(spending.outsiders), asked.outsiders.labels[: spending.outsiders]
    ]
    loss = found.findings["loss"]
    accused = loss.p_values <= outsider.ALPHA
    right = rate(int((accused & member).sum()), int(accused.sum()))
    wrong = rate(int((accused & ~member).sum()), int((~member).sum()))
    place = math.floor(outsider.ALPHA * (len(known) + 1))  # the so many-th largest of the known outsiders
    threshold = float(np.sort(known)[::-1][place - 1]) if place else math.nan
    aucs = {name: ranked(finding.scores, member) for name, finding in found.findings.items()}
    return Outcome(
        accuracy, confidence[told], known, threshold, int(accused.sum()), right, wrong, aucs, spending.queries
    )


def target_card(url: str, key: str) -> dict[str, Any]:
    from fedsim.serving.client import RemoteModel

    with RemoteModel(url, key) as model:
        return model.card


def kept(path: Path, make: Callable[[], Outcome]) -> Outcome:
    """Return the outcome of a file, made where there is none: stopped, the script goes on."""
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        arrays = {name: np.array(known[name], dtype=float) for name in ("of_members", "of_others")}
        rates = {name: Estimate(**known[name]) for name in ("right", "wrong")}
        aucs = {name: Estimate(**estimate) for name, estimate in known["auc"].items()}
        return Outcome(**{**known, **arrays, **rates, "auc": aucs})
    outcome = make()
    arrays = {name: getattr(outcome, name).tolist() for name in ("of_members", "of_others")}
    files.write_text(path, json.dumps(asdict(replace(outcome, **arrays))))
    return outcome


# --------------------------------------------------------------------------------------------- the page
def share(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "–"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def row(defence: Defence, outcome: Outcome) -> str:
    best = max(outcome.auc, key=lambda name: outcome.auc[name].value)
    cells = [
        defence.name,
        defence.against or "–",
        f"{outcome.accuracy:.2f}",
        f"{np.nanmedian(outcome.of_members):.2f}",
        f"{np.nanmedian(outcome.of_others):.2f}",
        f"{outcome.accused}",
        share(outcome.right),
        share(outcome.wrong),
        share(outcome.auc["loss"]),
        f"{share(outcome.auc[best])} {best}",
    ]
    return f"| {' | '.join(cells)} |"


HEADINGS = (
    "defence", "protects against", "accuracy", "confidence, members", "confidence, outsiders", "accused",
    "of whom members", "others accused", "AUC of loss", "best AUC of the suite",
)  # fmt: skip


def picture(outcome: Outcome) -> str:
    """The confidence gap: share of members and of known outsiders whose diagnosis the model is as sure of."""
    frame = svg.Frame(svg.Scale(0, 1, 64, 524), svg.Scale(0, 1, 300, 34))
    grid = np.linspace(0, 1, 101)
    parts = [frame.axes("probability that the model gives a person's own diagnosis", "share of people below")]
    names = [("known outsiders", outcome.of_others, "s1"), ("members", outcome.of_members, "s0")]
    for name, values, style in names:
        parts.append(frame.line([(x, float(np.mean(values <= x))) for x in grid], style, name))
    cut = outcome.threshold
    parts.append(frame.line([(cut, 0), (cut, 1)], "chance", "threshold"))
    legend = [*((name, style) for name, _, style in names), ("threshold", "chance")]
    parts.append(svg.legend(544, 44, legend))
    return svg.chart(700, 350, "Train-test gap of the model's confidence", *parts)


def story(run: RunDirectory, outcome: Outcome, lists: tuple[Path, Path]) -> list[str]:
    sizes = ", ".join(f"{name} ({n})" for name, n in run.manifest["parties"].items())
    group, others = (len(pd.read_csv(path)) for path in lists)
    low, high = np.median(outcome.of_others), np.median(outcome.of_members)
    return [
        f"1. Four clinics keep a registry of rare disorders each, a made-up one: {sizes} patients.",
        "   Half of them are used for training.",
        f"2. They train one model in {run.scenario.federation.rounds} rounds; accuracy on held-out patients "
        f"{outcome.accuracy:.2f}.",
        "3. A start-up serves it (`fedsim serve`); a researcher has a key that tells all probabilities,",
        f"4. the {group} members of a patients' group, and {others} people known not to be in the data.",
        f"5. About the known outsiders the model is {low:.2f} sure of their diagnosis (median),",
        f"6. about those of the group who are in the data {high:.2f}. (It does not know who.)",
        f"7. The threshold is the {outcome.threshold:.3f} that 5 % of the known outsiders reach.",
        f"8. {outcome.accused} of the group are accused; all attacks took {outcome.queries} queries.",
        f"9. Of the accused {share(outcome.right)} are in the data; of the others of the group",
        f"   {share(outcome.wrong)} are accused.",
        "10. The same with each defence: the table.",
    ]


@click.command()
@click.option("--out", default="runs/healthy-outcomes", show_default=True, type=click.Path(path_type=Path))
@click.option("--workers", default=2, show_default=True)
@click.option("--only", multiple=True, help="Defences by the beginning of their names.")
@click.option("--quick", is_flag=True, help="Three rounds, to see that it works.")
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(out: Path, workers: int, only: tuple[str, ...], quick: bool, results: Path) -> None:
    results, out = (out / "results" if quick else results), out.resolve()
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    registry.registry(PATIENTS, seed=1).to_csv(data / "registry.csv", index=False)
    registry.registry(PUBLIC, seed=2).drop(columns="clinic").to_csv(data / "public.csv", index=False)
    chosen = [d for d in DEFENCES if not only or d.name.startswith(("nothing", *only))]
    outcomes: list[tuple[Defence, Outcome]] = []
    for number, defence in enumerate(chosen, start=1):
        click.echo(f"{number} of {len(chosen)}: {defence.name}", err=True)
        run = federation(defence, out / "runs", data, quick)
        lists = persons(run, out / "persons")
        ask = partial(investigate, run, defence, lists, Laboratory(workers, out / "shadows"))
        outcomes.append((defence, kept(out / "outcomes" / f"{files.slug(defence.name)}.json", ask)))
    plain = federation(chosen[0], out / "runs", data, quick)
    filters = [
        notice
        for defence, _ in outcomes
        for notice in federation(defence, out / "runs", data, quick).manifest["notices"]
        if "claims" in notice and "aalborg" in notice
    ]
    lines = [
        "# Healthy outcomes: a released model, attacked in ten steps",
        "",
        f"`python experiments/healthy_outcomes/healthy_outcomes.py{' --quick' if quick else ''}`.",
        "Everything is asked over HTTP through the service.",
        "",
        *story(plain, outcomes[0][1], persons(plain, out / "persons")),
        "",
        "![Confidence gap](healthy_outcomes.svg)",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
        *(row(defence, outcome) for defence, outcome in outcomes),
        "",
        "Accused: rank p ≤ .05 among the known outsiders by the loss attack. Intervals are 95 %. The best of",
        "the attacks errs upwards. 'Outsiders alone': participants were sent the global models all the same.",
        "All rows share one draw of known outsiders; the 5 % hold on average over draws.",
        "",
        *(f"- {notice}" for notice in dict.fromkeys(filters)),
    ]
    files.write_text(results / "healthy_outcomes.md", "\n".join(lines) + "\n")
    files.write_text(results / "healthy_outcomes.svg", svg.standalone(picture(outcomes[0][1])))
    click.echo(f"{results / 'healthy_outcomes.md'}")


if __name__ == "__main__":
    main()
