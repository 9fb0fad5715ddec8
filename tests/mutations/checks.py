"""Unit checks of DP-SGD at a party: laws that any correct implementation keeps.

Each returns None where the law holds, else a sentence. None of them knows of a bug: they ask the code as a
federation does (`clients.participant`, `core.training.dp`, `core.data.encode`), on one of its paths,
see `world.PATHS`. Statistical laws are tested at a level of 1e-7 with fixed streams.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import combinations

import dp_accounting
import numpy as np
import pandas as pd
from dp_accounting import pld
from flwr.app import RecordDict
from scipy import stats
from torch import nn

from clients import participant
from clients.party import Party
from fedsim.core import rng
from fedsim.core.data.encode import Encoded, encode
from fedsim.core.data.records import Records
from fedsim.core.data.schema import Column, Schema
from fedsim.core.data.table import Table
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings
from mutations.world import (
    CLASSES,
    FEATURES,
    LR,
    PLAN,
    a_context,
    a_party,
    flat_update,
    metrics,
    module,
    one_round,
    some_records,
    trained,
    without_dp,
)

Check = Callable[[str], str | None]
LEVEL = 1e-7


def noise_has_standard_deviation_sigma_c(path: str) -> str | None:
    """The sum of squares of n draws over their variance is χ²(n), in steps with and without records.

    With nobody drawn (q = 0) a round of k steps adds k draws to a parameter; with everybody drawn (q = 1) the
    difference of two rounds of one step has that of two.
    """
    one_draw = LR * PLAN.noise_multiplier * PLAN.clipping_norm / PLAN.expected_batch
    start, records = module(path), some_records()
    nobody = replace(PLAN, sample_rate=0.0, steps_per_round=3)
    moved, report = trained(path, start, records, nobody)
    if report.steps != nobody.steps_per_round:
        return f"{report.steps} of {nobody.steps_per_round} steps are counted where nobody was drawn"
    problem = _not_gaussian(moved, one_draw * math.sqrt(report.steps))
    if problem:
        return f"{report.steps} steps with empty batches: {problem}"
    one, other = (trained(path, start, records, PLAN, draw)[0] for draw in (1, 2))
    problem = _not_gaussian({name: one[name] - other[name] for name in one}, one_draw * math.sqrt(2))
    if problem:
        return f"two steps with full batches: {problem}"
    return None


def noise_of_parameters_is_independent(path: str) -> str | None:
    """No two layers of the same shape get correlated noise, nor two halves of one layer."""
    start = module(path)
    moved, _ = trained(path, start, some_records(), replace(PLAN, sample_rate=0.0))
    layers = [moved[name].ravel() for name in moved if moved[name].size == FEATURES**2]
    layers += [half for layer in layers for half in np.split(layer, 2)]
    for one, other in combinations(layers, 2):
        if one.size == other.size and np.abs(_correlation(one, other)) > _correlation_bound(one.size):
            return f"the noise of two parameters has correlation {_correlation(one, other):.2f}"
    return None


def noise_of_rounds_and_parties_is_independent(path: str) -> str | None:
    """Two rounds, parties or games that start from the same weights differ by two draws of noise."""
    expected = LR * 1.3 * 0.5 / 12 * math.sqrt(2)
    start = module(path)
    keys = [("hospital-1", 1, 0), ("hospital-1", 2, 0), ("hospital-2", 1, 0), ("hospital-1", 1, 1)]
    updates = {}
    for name, round, game in keys:
        party = a_party(path, name, game, accountant="rdp")
        updates[name, round, game] = flat_update(one_round(party, a_context(), round, start), start)
    for one, other in combinations(updates, 2):
        problem = _not_gaussian({"update": updates[one] - updates[other]}, expected)
        if problem:
            return f"(party, round, game) {one} less {other}: {problem}"
    return None


def one_record_moves_the_sum_by_c_at_most(path: str) -> str | None:
    """Sensitivity: with the same noise, leaving any record out moves the round by lr C / (expected batch).

    Also where its gradient is huge, and where the other records' are.
    """
    start, records = module(path), some_records()
    everyone, _ = trained(path, start, records, PLAN)
    for left_out in (0, 1, 2):
        without, _ = trained(path, start, records.take(np.arange(len(records)) != left_out), PLAN)
        moved = math.sqrt(sum(float(((everyone[name] - without[name]) ** 2).sum()) for name in everyone))
        moved *= PLAN.expected_batch / LR
        if moved > PLAN.clipping_norm * 1.001:
            return f"record {left_out} moves the sum by {moved:.4g}, C is {PLAN.clipping_norm:g}"
    return None


def inclusion_is_binomial(path: str) -> str | None:
    """How often each record takes part in a round of k steps is Bin(k, q), independently of the others.

    Records are one-hot, the model linear and C tiny: a record moves its own column by as much each time and
    nothing else does, so that the column counts.
    """
    n, steps, rounds, rate = 32, 8, 16, 0.25
    records = Records(np.eye(n, dtype=np.float32), np.arange(n) % 2)
    plan = replace(PLAN, sample_rate=rate, expected_batch=n * rate, steps_per_round=steps)
    plan = replace(plan, noise_multiplier=0.0, clipping_norm=1e-3)
    # Dropout at rate 0 changes nothing but that the module is no plain stack of layers.
    layers = [nn.Linear(n, 2), *[nn.Dropout(0.0)] * (path != "written out")]
    start = nn.Sequential(*layers)
    for parameter in start.parameters():
        nn.init.zeros_(parameter)
    alone = replace(plan, sample_rate=1.0, steps_per_round=1)
    unit = np.linalg.norm(trained(path, start, records.take(np.arange(1)), alone)[0]["0.weight"][:, 0])
    columns = [trained(path, start, records, plan, draw)[0]["0.weight"] for draw in range(rounds)]
    times = np.linalg.norm(columns, axis=1) / unit  # (rounds, n)
    count = times.round()
    if np.abs(times - count).max() > 0.02:
        return "a record moves the sum by something else than it does alone"
    variance = steps * rate * (1 - rate)
    off = abs(count.mean() - steps * rate) / math.sqrt(variance / count.size)
    if off > stats.norm.isf(LEVEL / 2):
        return f"records take part in {count.mean() / steps:.3f} of the steps, q is {rate:g}"
    problem = _wrong_variance(count - steps * rate, variance)
    if problem:
        return f"how often a record takes part in a round: {problem}"
    problem = _wrong_variance(count.sum(1) - n * steps * rate, n * variance)
    if problem:
        return f"how many records take part in a round: {problem}"
    return None


def adaptive_clipping_is_paid(path: str) -> str | None:
    """The gradients' noise z C and the count's σ_b cost together what σ does: 1/z² + 1/(2σ_b)² = 1/σ².

    The two are releases of a Gaussian mechanism with sensitivities C and ½. With nobody drawn, z is read off
    what a step moves, σ_b off what it makes of C.
    """
    rounds, sigma = 24, PLAN.noise_multiplier
    adaptive = replace(PLAN, sample_rate=0.0, clipping="adaptive")
    moved, counts = [], []
    for draw in range(rounds):
        arrays, report = trained(path, module(path), some_records(), adaptive, draw)
        moved += [array.ravel() for array in arrays.values()]
        change = math.log((report.clipping_norm or math.nan) / PLAN.clipping_norm)
        counts.append(-change / adaptive.clipping_rate * PLAN.expected_batch)
    z = np.concatenate(moved).std() * PLAN.expected_batch / LR / PLAN.clipping_norm
    if z**2 < 1.05 * sigma**2:
        return f"the noise on the gradients, z = {z:.3g}, leaves nothing of what σ = {sigma:g} costs"
    needed = (4 * (1 / sigma**2 - 1 / z**2)) ** -0.5
    if (np.array(counts) ** 2).sum() / needed**2 < stats.chi2.ppf(LEVEL, rounds):
        return f"the count's noise has standard deviation {np.std(counts):.3g}, it should be {needed:.3g}"
    return None


def reported_epsilon_is_that_of_all_rounds(path: str) -> str | None:
    """After each round a party reports what dp-accounting's PLD says of all its steps so far."""
    context, party = a_context(), a_party(path, batch=3, steps=4)
    for round in (1, 2, 3):
        found = metrics(one_round(party, context, round))["epsilon"]
        exact = exact_epsilon(0.25, 1.3, 4 * round)
        if not exact - 1e-3 <= found <= exact + 0.012:
            return f"after round {round} the party reports ε = {found:.4g}, dp-accounting {exact:.4g}"
    return None


def planned_epsilon_is_that_of_all_rounds(path: str) -> str | None:
    """What a party announces before round 1 is what all rounds' steps cost; a target is met by the run."""
    for options in ({}, {"epsilon": 3.0}):
        party = a_party(path, batch=3, steps=4, **options)
        plan = participant.introduce(party, a_context()).config_records["introduction"]
        exact = exact_epsilon(0.25, float(plan["noise_multiplier"]), 4 * 3)
        if not exact - 1e-3 <= float(plan["epsilon"]) <= exact + 0.012:
            return f"the plan says ε = {plan['epsilon']:.4g}, dp-accounting {exact:.4g} for all 3 rounds"
        if options and not 0.97 * 3.0 <= exact <= 3.0 + 1e-3:
            return f"the noise planned for ε = 3 gives {exact:.4g} in all 3 rounds"
    return None


def spent_budget_ends_training(path: str) -> str | None:
    """A party trains while its budget lasts, refuses the round that would exceed it, and not before."""
    affordable = exact_epsilon(0.25, 1.3, 8) + 0.02  # two rounds of four steps; a third costs far more
    context, party = a_context(), a_party(path, batch=3, steps=4, budget=affordable)
    for round in (1, 2, 3):
        refused = "refusal" in one_round(party, context, round)
        if refused != (round == 3):
            what = "refuses" if refused else "trains in"
            return f"with a budget of two rounds the party {what} round {round}"
    return None


def encoding_ignores_other_records(path: str) -> str | None:
    """Changing a private record changes its own features and nothing else, with and without declared bounds.

    ``path`` plays no part: encoding comes before it.
    """
    for declared in (True, False):
        before = _encoded(declared)
        private = before.features[:, 0].argsort()[3]
        row = round((before.features[private, 0] / 4 + 0.5) * 99)
        after = _encoded(declared, changed=row)
        others = np.arange(len(before)) != private
        same = before.features.shape == after.features.shape and np.array_equal(
            before.features[others], after.features[others]
        )
        if not same:
            how = "declared bounds" if declared else "public records"
            return f"changing private record {row} changes the features of others ({how})"
        if np.array_equal(before.features[private], after.features[private]):
            return f"changing private record {row} does not change its own features"
    return None


def batch_norm_is_refused(path: str) -> str | None:
    """A model in which a record's output depends on the others' is refused before round 1, by its layer."""
    party = a_party(path)
    layers = [nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)]
    try:
        participant.introduce(replace(party, module=nn.Sequential(*layers)), a_context())
    except InputError as error:
        return None if "BatchNorm" in str(error) else f"the refusal does not name BatchNorm: {error}"
    return "a model with BatchNorm is let into a run with DP-SGD"


def answers_say_nothing_of_records(path: str) -> str | None:
    """Beside the weights, an answer is the same for any records of the same number; but for its seconds."""
    one, other = (_answers(party) for party in (a_party(path), _with_another_record(a_party(path))))
    if set(one) != set(other):
        return f"what is answered depends on the records: {sorted(set(one) ^ set(other))}"
    for name in one:
        if one[name] != other[name] and not (math.isnan(one[name]) and math.isnan(other[name])):
            return f"'{name}' depends on a private record: {one[name]:.6g}, {other[name]:.6g}"
    return None


def a_private_round_depends_on_its_inputs_only(path: str) -> str | None:
    """What a party learnt without DP in an earlier round does not reach a private one by its optimizer."""
    start = module(path)
    party = a_party(path, momentum=0.9, accountant="rdp")
    alone = one_round(party, a_context(), 2, start)
    one_round(without_dp(party), a_context(), 1, start)
    after = one_round(party, a_context(), 2, start)
    if not np.array_equal(flat_update(alone, start), flat_update(after, start)):
        return "a round with DP is another one after a round without"
    return None


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        noise_has_standard_deviation_sigma_c,
        noise_of_parameters_is_independent,
        noise_of_rounds_and_parties_is_independent,
        one_record_moves_the_sum_by_c_at_most,
        inclusion_is_binomial,
        adaptive_clipping_is_paid,
        reported_epsilon_is_that_of_all_rounds,
        planned_epsilon_is_that_of_all_rounds,
        spent_budget_ends_training,
        encoding_ignores_other_records,
        batch_norm_is_refused,
        answers_say_nothing_of_records,
        a_private_round_depends_on_its_inputs_only,
    )
}


def problems(path: str) -> dict[str, str]:
    """What each check that does not pass says of this path, by its name."""
    return {name: said for name, check in CHECKS.items() if (said := check(path)) is not None}


@lru_cache
def exact_epsilon(rate: float, sigma: float, steps: int, delta: float = 1e-5) -> float:
    """ε of the Poisson-subsampled Gaussian mechanism, by Google's dp-accounting."""
    accountant = pld.PLDAccountant()
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    return float(accountant.compose(step, steps).get_epsilon(delta))


def _not_gaussian(arrays: dict[str, np.ndarray], deviation: float) -> str | None:
    """Test that the entries of every array are centred and have this standard deviation."""
    for name, array in arrays.items():
        low, high = stats.chi2.ppf([LEVEL, 1 - LEVEL], array.size)
        if not low <= (array.astype(float) ** 2).sum() / deviation**2 <= high:
            found = math.sqrt(float((array.astype(float) ** 2).mean()))
            return f"the noise on {name} has standard deviation {found:.4g}, it should be {deviation:.4g}"
    return None


def _wrong_variance(deviations: np.ndarray, variance: float) -> str | None:
    low, high = stats.chi2.ppf([LEVEL, 1 - LEVEL], deviations.size)
    if low <= (deviations**2).sum() / variance <= high:
        return None
    return f"its variance is {(deviations**2).mean():.3g}, it should be {variance:.3g}"


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where one of the two is constant: that there is no noise at all is for others to say."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


def _correlation_bound(n: int) -> float:
    """Fisher's z of uncorrelated normal draws is nearly N(0, 1 / (n − 3))."""
    return math.tanh(float(stats.norm.isf(LEVEL / 2)) / math.sqrt(n - 3))


def _encoded(declared: bool, changed: int | None = None) -> Encoded:
    """A table of 100 rows: row number, two numbers and a category; one row changed in all but the first."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"row": np.arange(100), "a": draw.normal(50, 10, 100), "b": draw.normal(size=100)}
    ).astype(object)
    frame["c"] = draw.choice(["u", "v"], 100)
    frame["y"] = np.where(np.arange(100) % 3, "n", "p")
    if changed is not None:
        other = "v" if frame.loc[changed, "c"] == "u" else "u"
        frame.loc[changed, ["a", "b", "c"]] = [5000.0, -40.0, other]
    row = Column("row", "number", (0.0, 99.0))
    if declared:
        columns = (
            row,
            Column("a", "number", (0.0, 100.0)),
            Column("b", "number", (-5.0, 5.0)),
            Column("c", "category", None, ("u", "v")),
        )
    else:
        columns = (row, *(Column(name) for name in "abc"))
    table = Table(frame, Schema(columns, "y", ("n", "p"), None, None), "toy", {})
    return encode(table, DataSettings(path="toy.csv", label="y"), rng.generator(0, "mutations: data"))


def _with_another_record(party: Party) -> Party:
    train = party.records.train
    features, labels = train.features.copy(), train.labels.copy()
    features[3] *= -20
    labels[3] = (labels[3] + 1) % CLASSES
    return replace(party, records=replace(party.records, train=Records(features, labels)))


def _answers(party: Party) -> dict[str, float]:
    """Every number that leaves the party beside its weights, by name."""
    context = a_context()
    found: dict[str, float] = {}
    contents: list[RecordDict] = [participant.introduce(party, context)]
    contents += [one_round(party, context, round, copy.deepcopy(party.module)) for round in (1, 2)]
    for i, content in enumerate(contents):
        for key, record in content.items():
            if key == "arrays":
                continue
            numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
            found |= {f"{key}.{name} of answer {i}": float(value) for name, value in numbers.items()}
            found |= {
                f"{key}.{name}={record[name]} of answer {i}": 0.0 for name in set(record) - set(numbers)
            }
    return {name: value for name, value in found.items() if not name.startswith("metrics.seconds")}
