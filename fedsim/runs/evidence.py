"""Evidence about single records: was it in the training set of a run's federation?

A record that is among the run's candidates keeps the score of the run's strongest attack. Of any other,
what the adversary kept is asked again by the strongest of the attacks that simulate nothing, together with
the candidates, whose sides the judge knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attacks import execution, registry
from attacks.execution import Task
from attacks.views import observations
from fedsim.core import rng
from fedsim.core.data.listed import read_persons
from fedsim.core.data.records import Records
from fedsim.core.data.released import read_schema
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.adversary import OWNS
from fedsim.evaluation import evidence, results
from fedsim.evaluation.evidence import Calibration, Statement
from fedsim.runs import integrity

COLUMNS = [
    "record", "candidate", "attack", "ratio", "probability", "prior", "says", "right", "right_low",
    "right_high", "assumes", "words",
]  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where likelihood ratios come from: an attack, what it assumes, and its calibration on n candidates."""

    attack: str
    assumes: str
    calibration: Calibration


def about(run: RunDirectory, file: Path, prior: float, game: int = 0) -> pd.DataFrame:
    """Return what may be said of each record of a file, a row each (`COLUMNS`).

    candidate: the record's number among the run's candidates, −1 where it is none of them
    says: 'member', 'not a member' or 'undecided'; right, right_low, right_high: how often such a statement is
    right at the prior, with its 95 % interval

    Raises:
        InputError: the file does not fit the run's table, the run is not finished, or the calibration of an
            attack that is needed does not hold.
    """
    integrity.verify_asked(run)
    if not run.has("strongest"):
        raise InputError(
            f"{run.path} has no attack results to rest on; finish it with `fedsim run … --resume`"
        )
    people = read_persons(file, read_schema(run.path)).records
    candidates = run.read_candidates(game).records
    places = matched(people, candidates)
    known = places >= 0
    ratios, sources = np.empty(len(people)), np.empty(len(people), dtype=object)
    if known.any():
        source, of_candidates = _strongest(run, game)
        ratios[known], sources[known] = of_candidates[places[known]], source
    if not known.all():
        source, of_people = _asked_again(run, game, candidates, people)
        ratios[~known], sources[~known] = of_people[~known], source
    rows = [
        _row(number, int(places[number]), sources[number], float(ratios[number]), prior)
        for number in range(len(people))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def matched(people: Records, candidates: Records) -> np.ndarray:
    """Return each record's number among the candidates, −1 where none has its features and label, (n,)."""

    def keys(records: Records) -> list[bytes]:
        flat = np.ascontiguousarray(records.features.reshape(len(records), -1), dtype=np.float32)
        return [row.tobytes() + int(y).to_bytes(8, "little", signed=True)
                for row, y in zip(flat, records.labels, strict=True)]  # fmt: skip

    place = {key: number for number, key in reversed(list(enumerate(keys(candidates))))}
    return np.array([place.get(key, -1) for key in keys(people)])


def _strongest(run: RunDirectory, game: int) -> tuple[Source, np.ndarray]:
    """Return the run's strongest attack and the candidates' out-of-fold ratios, (n,)."""
    table = run.table("strongest")
    chosen = table[(table["observer"] == "participant") & (table["party"] == "all")]["attack"].iloc[0]
    rows = _judged(run, game)
    rows = rows[rows["attack"] == chosen].sort_values("candidate")
    scores, member = rows["score"].to_numpy(float), rows["member"].to_numpy(bool)
    source = _source(run, str(chosen), scores, member)
    order = np.argsort(scores, kind="stable")
    of_candidate = np.full(int(rows["candidate"].max()) + 1, 1.0)
    of_candidate[rows["candidate"].to_numpy()[order]] = source.calibration.ratios
    return source, of_candidate


def _judged(run: RunDirectory, game: int) -> pd.DataFrame:
    rows = results.in_world(run, results.judged(run))
    return rows[(rows["game"] == game) & (rows["observer"] == "participant")]


def _asked_again(
    run: RunDirectory, game: int, candidates: Records, people: Records
) -> tuple[Source, np.ndarray]:
    """Return the strongest attack that simulates nothing, and the people's ratios by it, (k,)."""
    rows = _judged(run, game)
    light = [attack for attack in registry.attacks_of(run.scenario)
             if attack.infers == "membership" and not (attack.shadows or attack.simulates)]  # fmt: skip
    auc = results.in_world(run, run.table("leakage"))
    auc = auc.query("metric == 'auc' and party == 'all' and observer == 'participant'")
    auc = auc[auc["game"] == "all"]
    values = dict(zip(auc["attack"], auc["value"].astype(float), strict=True))
    ranked = sorted((a for a in light if a.name in values), key=lambda a: -values[a.name])
    if not ranked:
        raise InputError(
            f"{run.path}: records that are no candidates need an attack without simulations, such as 'loss'; "
            f"run `fedsim attack {run.path} --attacks loss` first"
        )
    everyone = Records.concatenate([candidates, people])
    view = observations.load_view(run.observations(game))
    found = execution.run("participant", view, ranked[:1], Task(everyone, run.scenario.seed, game))
    scores = found.findings[ranked[0].name].scores
    truth = rows[rows["attack"] == ranked[0].name].sort_values("candidate")
    member = truth["member"].to_numpy(bool)
    source = _source(run, ranked[0].name, scores[truth["candidate"].to_numpy()], member)
    return source, source.calibration.ratio(scores[len(candidates) :])


def _source(run: RunDirectory, attack: str, scores: np.ndarray, member: np.ndarray) -> Source:
    """Return the calibration of an attack.

    Raises:
        InputError: it does not hold.
    """
    stream = rng.generator(run.scenario.seed, f"evidence/{attack}")
    calibration = evidence.calibrate(scores, member, stream)
    if calibration.refusal:
        raise InputError(f"{run.path}: no evidence can be given by '{attack}': {calibration.refusal}")
    declared = run.table("attacks")
    rows = declared[(declared["observer"] == "participant") & (declared["attack"] == attack)]
    assumes = str(rows["assumes"].iloc[0]) if len(rows) else "what it does not declare"
    if len(rows) and bool(rows["shadows"].iloc[0]):
        assumes += f"; and an adversary that owns {OWNS[run.scenario.adversary.ladder[0]]}"
    return Source(attack, assumes, calibration)


def _row(number: int, candidate: int, source: Source, ratio: float, prior: float) -> tuple:
    said = evidence.state(source.calibration, ratio, prior)
    says = {True: "member", False: "not a member", None: "undecided"}[said.member]
    right = said.right
    return (number + 1, candidate, source.attack, ratio, said.probability, prior, says, right.value,
    right.low,
            right.high, source.assumes, wording(number + 1, source, said, prior))  # fmt: skip


def wording(number: int, source: Source, said: Statement, prior: float) -> str:
    """Return sentences fit for a file: what was found, how often it errs, what it rests on."""
    member = source.calibration.members
    towards, factor = ("was", said.ratio) if said.ratio >= 1 else ("was not", 1 / said.ratio)
    at_most = " or more" if factor >= source.calibration.largest - 1e-9 else ""
    right = said.right
    errs = "how often it errs cannot be told"
    if np.isfinite(right.value):
        wrong, low, high = (_percent(1 - share) for share in (right.value, right.high, right.low))
        errs = f"of such findings {wrong} are wrong (95 % interval {low} to {high})"
    decided = "" if said.member is not None else " This decides nothing."
    return (
        f"Record {number}: what was found is {factor:.1f} times{at_most} as probable if the record {towards} "
        f"in the training set. Where {100 * prior:g} % of such records are, the probability that this one is "
        f"in is {_percent(said.probability)}; at that prior {errs}.{decided} It rests on the attack "
        f"'{source.attack}', calibrated on {int(member.sum())} members and {int((~member).sum())} "
        f"non-members of this one federation, which assumes: {source.assumes}. It is no proof of membership."
    )


def _percent(share: float) -> str:
    """Say a share without calling it certain: '12 %', 'under 1 %', 'over 99 %'."""
    if 0 < share < 0.01 or share >= 0.99:
        return "under 1 %" if share < 0.5 else "over 99 %"
    return f"{100 * share:.0f} %"
